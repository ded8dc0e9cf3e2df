//! Everything the agent says to a person, in each language it speaks.
//!
//! The tables are `match`es over all phrases and all codes, and each row has all
//! languages: the compiler refuses a gap.

use std::collections::BTreeMap;
use std::str::FromStr;

use tegata_proto::code::Code;
use tegata_proto::session::Notice;

/// A language of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// English.
    En,
    /// Japanese.
    Ja,
}

/// The text is not the name of a language that the agent speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent speaks ja and en")]
pub struct UnknownLanguage;

impl FromStr for Language {
    type Err = UnknownLanguage;

    fn from_str(text: &str) -> Result<Self, UnknownLanguage> {
        match text {
            "en" => Ok(Self::En),
            "ja" => Ok(Self::Ja),
            _ => Err(UnknownLanguage),
        }
    }
}

impl Language {
    /// Guesses from a POSIX locale, as in `ja_JP.UTF-8`.
    pub fn of_locale(locale: &str) -> Self {
        if locale.starts_with("ja") { Self::Ja } else { Self::En }
    }

    /// Returns the language as BCP 47.
    pub fn tag(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Ja => "ja",
        }
    }
}

/// One row of a table.
struct Text {
    en: &'static str,
    ja: &'static str,
}

impl Text {
    fn in_language(&self, language: Language) -> &'static str {
        match language {
            Language::En => self.en,
            Language::Ja => self.ja,
        }
    }
}

/// Something to say; `{}` stands for its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phrase {
    /// With the server.
    Connecting,
    /// With the address.
    Connected,
    /// With the person's name.
    Authenticated,
    /// With the place in the queue.
    Queued,
    /// The desktop is being started.
    Starting,
    /// The desktop is the person's.
    Assigned,
    /// With the desktop's name.
    Ticket,
    /// With the gateway's name.
    Attached,
    /// With the address that waits for a viewer.
    Forwarding,
    /// The desktop answers.
    FirstByte,
    /// The connection is gone, and another is being tried.
    LinkLost,
    /// The session goes on.
    Resumed,
    /// The connection has moved to another network.
    Migrated,
    /// With the code of a notice that is not known here.
    Notice,
    /// The desktop is shown anew, with what is allowed on this network.
    PolicyChanged,
    /// The desktop may not be used on this network.
    NotAllowedHere,
    /// With the time until the session ends.
    TimeLimitSoon,
    /// With the time until the session is closed for want of input.
    IdleSoon,
    /// A time of so many minutes.
    Minutes,
    /// A time of so many seconds.
    Seconds,
    /// The clock may be wrong.
    ClockSuspect,
    /// With the seconds to wait.
    TryAgainIn,
    /// Above the list of pools.
    ChoosePool,
    /// A pool with a free desktop.
    PoolReady,
    /// A pool with the person's own desktop.
    PoolYours,
    /// A pool without a free desktop.
    PoolFull,
    /// Asks for the name.
    AskName,
    /// Asks for the password.
    AskPassword,
    /// The password file can be read by others; with its path.
    ExposedFile,
}

impl Phrase {
    /// Every phrase.
    pub const ALL: &[Self] = &[
        Self::Connecting,
        Self::Connected,
        Self::Authenticated,
        Self::Queued,
        Self::Starting,
        Self::Assigned,
        Self::Ticket,
        Self::Attached,
        Self::Forwarding,
        Self::FirstByte,
        Self::LinkLost,
        Self::Resumed,
        Self::Migrated,
        Self::Notice,
        Self::PolicyChanged,
        Self::NotAllowedHere,
        Self::TimeLimitSoon,
        Self::IdleSoon,
        Self::Minutes,
        Self::Seconds,
        Self::ClockSuspect,
        Self::TryAgainIn,
        Self::ChoosePool,
        Self::PoolReady,
        Self::PoolYours,
        Self::PoolFull,
        Self::AskName,
        Self::AskPassword,
        Self::ExposedFile,
    ];

    /// Returns the phrase with its value.
    pub fn with(self, language: Language, value: &str) -> String {
        self.text().in_language(language).replacen("{}", value, 1)
    }

    fn text(self) -> Text {
        match self {
            Self::Connecting => {
                Text { en: "Connecting to {} …", ja: "{} に接続しています…" }
            }
            Self::Connected => Text { en: "Connected ({}).", ja: "接続しました（{}）。" },
            Self::Authenticated => Text { en: "Welcome, {}.", ja: "{} さん、ようこそ。" },
            Self::Queued => Text {
                en: "Please wait; you are number {} in the queue.",
                ja: "お待ちください。順番は {} 番目です。",
            },
            Self::Starting => Text {
                en: "Your desktop is being started …",
                ja: "デスクトップを起動しています…",
            },
            Self::Assigned => Text {
                en: "A desktop is yours.",
                ja: "デスクトップを割り当てました。",
            },
            Self::Ticket => Text {
                en: "Going to desktop {} …",
                ja: "デスクトップ {} に接続します…",
            },
            Self::Attached => Text {
                en: "Connected to the desktop through {}.",
                ja: "{} 経由でデスクトップに接続しました。",
            },
            Self::Forwarding => Text {
                en: "Waiting for a viewer at {}.",
                ja: "{} でビューアの接続を待っています。",
            },
            Self::FirstByte => Text {
                en: "The desktop answers.",
                ja: "デスクトップが応答しました。",
            },
            Self::LinkLost => Text {
                en: "The connection was lost. Reconnecting …",
                ja: "回線が切れました。再接続しています…",
            },
            Self::Resumed => Text {
                en: "The connection is back. You can go on working.",
                ja: "回線が復旧しました。そのまま作業を続けられます。",
            },
            Self::Migrated => Text {
                en: "The network changed; the connection goes on.",
                ja: "ネットワークが切り替わりました。接続は続いています。",
            },
            Self::Notice => Text { en: "Notice: {}", ja: "お知らせ: {}" },
            Self::PolicyChanged => Text {
                en: "Other rules hold on this network. Your desktop is shown again in a moment …",
                ja: "このネットワークでは利用条件が変わります。画面を開き直します…",
            },
            Self::NotAllowedHere => Text {
                en: "Your desktop cannot be used from this network. It is kept as it is.",
                ja: "このネットワークからは利用できません。デスクトップはそのまま残ります。",
            },
            Self::TimeLimitSoon => Text {
                en: "Your session ends in {}. Please save your work.",
                ja: "あと{}で利用時間の上限です。作業内容を保存してください。",
            },
            Self::IdleSoon => Text {
                en: "Nobody is working here. You will be disconnected in {}.",
                ja: "しばらく操作がありません。あと{}で切断します。",
            },
            Self::Minutes => Text { en: "{} min", ja: " {} 分" },
            Self::Seconds => Text { en: "{} s", ja: " {} 秒" },
            Self::ClockSuspect => Text {
                en: "Check this device's clock first: the certificate does not hold at its time.",
                ja: "まずこの端末の時計を確認してください。証明書の有効期間と合っていません。",
            },
            Self::TryAgainIn => Text {
                en: "Try again in {} s.",
                ja: "{} 秒後にもう一度お試しください。",
            },
            Self::ChoosePool => Text {
                en: "Which pool? Type its number or name.",
                ja: "プールの番号または名前を入力してください。",
            },
            Self::PoolReady => Text { en: "ready", ja: "利用できます" },
            Self::PoolYours => Text {
                en: "your desktop is there",
                ja: "使用中のデスクトップがあります",
            },
            Self::PoolFull => Text { en: "full", ja: "満席です" },
            Self::AskName => Text { en: "User name: ", ja: "ユーザー名: " },
            Self::AskPassword => Text { en: "Password: ", ja: "パスワード: " },
            Self::ExposedFile => Text {
                en: "Others can read the password file {}.",
                ja: "パスワードファイル {} は他の人も読める状態です。",
            },
        }
    }
}

/// Returns what a notice of a gateway says to the person.
pub fn notice(code: &str, args: &BTreeMap<String, String>, language: Language) -> String {
    let left = || {
        let seconds: u64 = args.get("left_s")?.parse().ok()?;
        let (span, number) = match seconds {
            0..120 if seconds != 60 => (Phrase::Seconds, seconds),
            _ => (Phrase::Minutes, seconds / 60),
        };
        Some(span.with(language, &number.to_string()))
    };
    let unknown = || Phrase::Notice.with(language, code);
    let soon = |phrase: Phrase| left().map_or_else(unknown, |left| phrase.with(language, &left));
    match Notice::of(code) {
        Some(Notice::PolicyChanged) => Phrase::PolicyChanged.with(language, ""),
        Some(Notice::NotAllowedHere) => Phrase::NotAllowedHere.with(language, ""),
        Some(Notice::TimeLimitSoon) => soon(Phrase::TimeLimitSoon),
        Some(Notice::IdleSoon) => soon(Phrase::IdleSoon),
        None => unknown(),
    }
}

/// Returns what a code means for the person.
#[expect(clippy::too_many_lines, reason = "one table, read row by row")]
pub fn reason(code: Code, language: Language) -> &'static str {
    let text = match code {
        Code::LoggedOff => Text { en: "You are logged off.", ja: "ログオフしました。" },
        Code::Configuration => Text {
            en: "The agent's settings cannot be used.",
            ja: "エージェントの設定に誤りがあります。",
        },
        Code::Unreachable => Text {
            en: "The service cannot be reached.",
            ja: "接続先に到達できません。",
        },
        Code::TlsFailed => Text {
            en: "The server could not prove that it is ours.",
            ja: "接続先が正規のサーバーであることを確認できません。",
        },
        Code::PinMismatch => Text {
            en: "The desktop could not prove that it is yours.",
            ja: "デスクトップが正規のものであることを確認できません。",
        },
        Code::AgentTooOld => Text {
            en: "This agent is too old and has to be updated.",
            ja: "エージェントが古すぎます。更新してください。",
        },
        Code::Refused => Text {
            en: "The login was refused. Check name and password.",
            ja: "ログインできません。ユーザー名とパスワードを確認してください。",
        },
        Code::FactorFailed => Text {
            en: "The second factor was not accepted.",
            ja: "二つ目の認証に失敗しました。",
        },
        Code::Throttled => Text {
            en: "Too many tries from this network.",
            ja: "このネットワークからの試行が多すぎます。",
        },
        Code::PasswordExpired => Text {
            en: "The password has expired.",
            ja: "パスワードの有効期限が切れています。",
        },
        Code::AccountDisabled => Text {
            en: "The account is disabled.",
            ja: "アカウントが無効になっています。",
        },
        Code::Unavailable | Code::Busy | Code::TicketExpired => Text {
            en: "The service is not available now. Please try again later.",
            ja: "現在サービスを利用できません。後でもう一度お試しください。",
        },
        Code::NoEntitlement => Text {
            en: "No desktop is open to you. Ask the service desk.",
            ja: "利用できるデスクトップがありません。窓口にお問い合わせください。",
        },
        Code::NotAllowedHere => Text {
            en: "Your desktop cannot be used from this network.",
            ja: "このネットワークからはデスクトップを利用できません。",
        },
        Code::InUse => Text {
            en: "You are working on another device. Close the session there first.",
            ja: "別の端末で利用中です。先にそちらを終了してください。",
        },
        Code::PoolExhausted => Text {
            en: "All desktops are taken. Please try again later.",
            ja: "デスクトップに空きがありません。後でもう一度お試しください。",
        },
        Code::DesktopUnreachable => Text {
            en: "The desktop did not start.",
            ja: "デスクトップが起動しませんでした。",
        },
        Code::DesktopLost | Code::ResumeLost => Text {
            en: "The connection to the desktop was lost. Log in again to go on.",
            ja: "デスクトップとの接続が切れました。もう一度ログインしてください。",
        },
        Code::SessionEnded => {
            Text { en: "The session is over.", ja: "セッションは終了しています。" }
        }
        Code::Disconnected => Text {
            en: "You are disconnected; your desktop stays as it is.",
            ja: "切断しました。デスクトップはそのまま残ります。",
        },
        Code::IdleLimit => Text {
            en: "The session was ended because it was not used.",
            ja: "操作がなかったため、セッションを終了しました。",
        },
        Code::TimeLimit => Text {
            en: "The session reached its time limit.",
            ja: "利用時間の上限に達しました。",
        },
        Code::LoginAgain => Text {
            en: "Please log in again. Your desktop is kept as it is.",
            ja: "もう一度ログインしてください。デスクトップはそのまま残っています。",
        },
        Code::TakenOver => Text {
            en: "The desktop was taken over on another device.",
            ja: "別の端末でデスクトップに接続しました。",
        },
        Code::EndedByAdministrator => Text {
            en: "An administrator ended the session.",
            ja: "管理者がセッションを終了しました。",
        },
        Code::DeviceRevoked => Text {
            en: "This device may no longer be used.",
            ja: "この端末は使用できません。",
        },
        Code::Superseded
        | Code::TicketUsed
        | Code::TicketInvalid
        | Code::WrongKey
        | Code::WrongGroup
        | Code::LinkStale
        | Code::Malformed
        | Code::Unsupported
        | Code::Timeout
        | Code::Internal
        | Code::Unknown => Text {
            en: "Something went wrong. Ask the service desk.",
            ja: "エラーが発生しました。窓口にお問い合わせください。",
        },
    };
    text.in_language(language)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_languages_say_something_of_their_own_with_the_same_value() {
        for phrase in Phrase::ALL {
            let Text { en, ja } = phrase.text();
            assert!(!en.is_empty() && en.is_ascii() || en.contains('…'), "{en}");
            assert!(ja.chars().any(|c| c > '\u{3000}'), "{ja}");
            assert_eq!(en.matches("{}").count(), ja.matches("{}").count(), "{en}");
        }
        for code in Code::ALL {
            assert!(reason(*code, Language::En).is_ascii(), "{code}");
            assert!(!reason(*code, Language::Ja).is_ascii(), "{code}");
        }
    }

    #[test]
    fn a_notice_tells_the_time_that_is_left_and_a_strange_one_its_code() {
        let say = |code: &str, left: &str| {
            let args = [("left_s".to_owned(), left.to_owned())].into();
            [Language::En, Language::Ja].map(|language| notice(code, &args, language))
        };
        let soon = say("time_limit_soon", "300");
        assert!(soon[0].contains("in 5 min.") && soon[1].contains("あと 5 分で"), "{soon:?}");
        assert!(say("time_limit_soon", "60")[0].contains("in 1 min."));
        assert!(say("idle_soon", "10")[1].contains("あと 10 秒で"));
        assert!(say("idle_soon", "119")[0].contains("in 119 s."));
        for (code, left) in [("idle_soon", "soon"), ("idle_soon", "-1"), ("fire", "1")] {
            assert_eq!(say(code, left)[0], format!("Notice: {code}"), "{left}");
        }
    }

    #[test]
    fn a_value_is_put_in_once_and_not_looked_into() {
        assert_eq!(Phrase::Authenticated.with(Language::En, "{} {}"), "Welcome, {} {}.");
    }

    #[test]
    fn the_language_follows_the_locale() {
        assert_eq!(Language::of_locale("ja_JP.UTF-8"), Language::Ja);
        assert_eq!(Language::of_locale("C"), Language::En);
        assert_eq!(Language::of_locale(""), Language::En);
        assert_eq!("fr".parse::<Language>(), Err(UnknownLanguage));
    }
}
