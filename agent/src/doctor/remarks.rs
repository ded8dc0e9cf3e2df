//! What is said of each part, in each language, and what to do about it.

use crate::words::Language;

/// Something that was found; `{}` stands for its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remark {
    /// With the file, and what is wrong with it.
    AuthorityUnusable,
    /// With the addresses.
    NameFound,
    /// With the name.
    NameUnknown,
    /// With the address.
    QuicWorks,
    /// With the port.
    QuicBlocked,
    /// With the address.
    TcpWorks,
    /// With the port.
    TcpBlocked,
    /// Nor anybody of ours by the other transport; with the port.
    Nothing,
    /// It has no room; with the addresses.
    BrokerFull,
    /// Not a server of ours; with the addresses.
    AnswersWrongly,
    /// With the address.
    FamilyWorks,
    /// The server has none.
    FamilyAbsent,
    /// With the addresses.
    FamilySilent,
    /// Signed by our authority, for a broker.
    CertificateGood,
    /// With the reason.
    CertificateForeign,
    /// With the reason.
    CertificateClock,
    /// With the reason.
    CertificateRole,
    /// With the reason.
    NotOurProtocol,
    /// Not ours, while another answer is; with the way, the address and the reason.
    StrangerBeside,
    /// With the address and the key's hash.
    GatewayGood,
    /// With the addresses.
    GatewayElsewhere,
    /// With the address and the reason.
    GatewayForeign,
    /// With the address and the reason.
    GatewayClock,
    /// With the address and the reason.
    GatewayRole,
    /// With the address and the reason.
    GatewaySilent,
    /// With this program's version.
    BrokerReady,
    /// With the code.
    BrokerSilent,
    /// With the reason.
    BrokerOther,
    /// With the version that is wanted.
    AgentOld,
    /// With the difference in seconds.
    ClockRight,
    /// With the difference in seconds.
    ClockOff,
    /// With this machine's time, and when the certificate holds.
    ClockWrong,
    /// With the size of a packet.
    PathWide,
    /// With the size of a packet.
    PathNarrow,
    /// The agent's memory is locked, or there is no swap.
    NotSwappable,
    /// Under a limit of locked memory, with a swap.
    Swappable,
    /// With the version.
    FreerdpGood,
    /// There is none.
    FreerdpAbsent,
    /// With the version.
    FreerdpLacks,
    /// With the reason.
    FreerdpSilent,
}

/// One row of the table: what was found, and what to do where that is needed.
struct Row {
    en: (&'static str, Option<&'static str>),
    ja: (&'static str, Option<&'static str>),
}

const fn good(en: &'static str, ja: &'static str) -> Row {
    Row { en: (en, None), ja: (ja, None) }
}

const fn bad(en: [&'static str; 2], ja: [&'static str; 2]) -> Row {
    Row { en: (en[0], Some(en[1])), ja: (ja[0], Some(ja[1])) }
}

impl Remark {
    #[cfg(test)]
    pub(super) const ALL: [Self; 40] = [
        Self::AuthorityUnusable,
        Self::NameFound,
        Self::NameUnknown,
        Self::QuicWorks,
        Self::QuicBlocked,
        Self::TcpWorks,
        Self::TcpBlocked,
        Self::Nothing,
        Self::BrokerFull,
        Self::AnswersWrongly,
        Self::FamilyWorks,
        Self::FamilyAbsent,
        Self::FamilySilent,
        Self::CertificateGood,
        Self::CertificateForeign,
        Self::CertificateClock,
        Self::CertificateRole,
        Self::NotOurProtocol,
        Self::StrangerBeside,
        Self::GatewayGood,
        Self::GatewayElsewhere,
        Self::GatewayForeign,
        Self::GatewayClock,
        Self::GatewayRole,
        Self::GatewaySilent,
        Self::BrokerReady,
        Self::BrokerSilent,
        Self::BrokerOther,
        Self::AgentOld,
        Self::ClockRight,
        Self::ClockOff,
        Self::ClockWrong,
        Self::PathWide,
        Self::PathNarrow,
        Self::NotSwappable,
        Self::Swappable,
        Self::FreerdpGood,
        Self::FreerdpAbsent,
        Self::FreerdpLacks,
        Self::FreerdpSilent,
    ];

    /// Returns what was found.
    pub(super) fn found(self, language: Language, value: &str) -> String {
        self.texts(language).0.replacen("{}", value, 1)
    }

    /// Returns what to do, where something is to be done.
    pub(super) fn advice(self, language: Language, value: &str) -> Option<String> {
        self.texts(language).1.map(|text| text.replacen("{}", value, 1))
    }

    pub(super) fn texts(self, language: Language) -> (&'static str, Option<&'static str>) {
        let row = self.row();
        match language {
            Language::En => row.en,
            Language::Ja => row.ja,
        }
    }

    #[expect(clippy::too_many_lines, reason = "one table, read row by row")]
    const fn row(self) -> Row {
        match self {
            Self::AuthorityUnusable => bad(
                [
                    "The CA file cannot be used: {}",
                    "Give the site's CA file with --ca or in the configuration.",
                ],
                [
                    "CA ファイルを使用できません: {}",
                    "--ca または設定ファイルで、正しい CA ファイルを指定してください。",
                ],
            ),
            Self::NameFound => good("The name leads to {}.", "名前から {} が見つかりました。"),
            Self::NameUnknown => bad(
                [
                    "Nobody knows the name {}.",
                    "Check its spelling and this device's DNS. Some networks want you to sign in on a web page first.",
                ],
                [
                    "名前 {} が見つかりません。",
                    "つづりと、この端末の DNS 設定を確認してください。先に Web 画面での認証が必要なネットワークもあります。",
                ],
            ),
            Self::QuicWorks => good("QUIC reaches {}.", "QUIC で {} に接続できます。"),
            Self::QuicBlocked => bad(
                [
                    "Nothing comes back by QUIC.",
                    "Sessions go by TCP instead, which suffers more from a bad line. Ask whoever runs this network to let UDP port {} pass.",
                ],
                [
                    "QUIC では応答がありません。",
                    "代わりに TCP で接続しますが、回線の品質が悪いと遅くなります。UDP ポート {} の通過をネットワーク管理者に依頼してください。",
                ],
            ),
            Self::TcpWorks => good("TCP reaches {}.", "TCP で {} に接続できます。"),
            Self::TcpBlocked => bad(
                [
                    "Nothing comes back by TCP.",
                    "QUIC works, so sessions do. In networks without UDP there would be none: let TCP port {} pass too.",
                ],
                [
                    "TCP では応答がありません。",
                    "QUIC で接続できるので利用できますが、UDP を通さないネットワークでは接続できません。TCP ポート {} も通過させてください。",
                ],
            ),
            Self::Nothing => bad(
                [
                    "Nothing comes back.",
                    "Check the cable or wireless network, whether it wants you to sign in on a web page first, and that port {} passes, by UDP or TCP.",
                ],
                [
                    "応答がありません。",
                    "ケーブルや無線 LAN、先に Web 画面での認証が必要かどうか、ポート {} (UDP または TCP) が通過できるかを確認してください。",
                ],
            ),
            Self::BrokerFull => bad(
                [
                    "Whoever is there takes nobody in at the moment: {}",
                    "Try again in a few minutes.",
                ],
                [
                    "接続先は応答していますが、現在新しい接続を受け付けていません: {}",
                    "数分待ってからもう一度お試しください。",
                ],
            ),
            Self::AnswersWrongly => bad(
                [
                    "Something answers at {}, and it is not ours.",
                    "See what is said of the certificate.",
                ],
                [
                    "{} で応答がありますが、正しい接続先ではありません。",
                    "証明書の結果を確認してください。",
                ],
            ),
            Self::FamilyWorks => good("{} is reached.", "{} に接続できます。"),
            Self::FamilyAbsent => {
                good("The server has no such address.", "接続先にこの種類のアドレスはありません。")
            }
            Self::FamilySilent => bad(
                [
                    "Nothing comes back from {}.",
                    "Sessions take the server's other addresses, if those answer.",
                ],
                ["{} から応答がありません。", "ほかのアドレスで接続できれば利用できます。"],
            ),
            Self::CertificateGood => {
                good("The server is a broker of our authority.", "接続先は正しいブローカーです。")
            }
            Self::CertificateForeign => bad(
                [
                    "The server could not prove that it is ours: {}",
                    "Check that the CA file is this site's. If it is, do not log in from this network: somebody may stand in between.",
                ],
                [
                    "接続先が正しいことを確認できません: {}",
                    "CA ファイルが正しいか確認してください。正しい場合、このネットワークでは第三者が介在している可能性があるため、ログインしないでください。",
                ],
            ),
            Self::CertificateClock => bad(
                [
                    "The server's certificate does not hold at this time: {}",
                    "Set this device's clock first. If it is right, the site has to renew the certificate.",
                ],
                [
                    "接続先の証明書が有効期間外です: {}",
                    "まずこの端末の時計を合わせてください。時計が正しい場合は、証明書の更新が必要です。",
                ],
            ),
            Self::CertificateRole => bad(
                ["The server is ours, and not a broker: {}", "Check the server's name and port."],
                [
                    "接続先はブローカーではありません: {}",
                    "接続先の名前とポートを確認してください。",
                ],
            ),
            Self::NotOurProtocol => bad(
                [
                    "Something else answers there: {}",
                    "Check the server's name and port, and whether this network wants you to sign in on a web page first.",
                ],
                [
                    "別のサービスが応答しています: {}",
                    "接続先の名前とポート、先に Web 画面での認証が必要かどうかを確認してください。",
                ],
            ),
            Self::StrangerBeside => bad(
                [
                    "Somebody else answers too: {}",
                    "Sessions go the way that is ours. This network may look into TLS, or the address may be another machine's here: ask whoever runs it to let the port pass untouched.",
                ],
                [
                    "正しくない接続先からも応答があります: {}",
                    "正しい経路で接続するので利用できます。TLS 通信の検査や、同じアドレスの別の機器が原因の可能性があります。ポートをそのまま通過させるよう、ネットワーク管理者に依頼してください。",
                ],
            ),
            Self::GatewayGood => {
                good("The gateway is one of our authority: {}", "ゲートウェイは正しいものです: {}")
            }
            Self::GatewayElsewhere => good(
                "No gateway is at {}; sessions go to those that the broker names at login.",
                "{} にゲートウェイはありません。セッションは、ログイン時にブローカーが示すゲートウェイへ接続します。",
            ),
            Self::GatewayForeign => bad(
                [
                    "The gateway could not prove that it is ours: {}",
                    "The broker did, so the site has to give its gateway a certificate of the same authority. If it has one, somebody may stand in between: do not log in.",
                ],
                [
                    "ゲートウェイが正しいことを確認できません: {}",
                    "ブローカーは確認できたので、同じ認証局の証明書をゲートウェイに設定するよう管理者に依頼してください。設定済みの場合は第三者が介在している可能性があるため、ログインしないでください。",
                ],
            ),
            Self::GatewayClock => bad(
                [
                    "The gateway's certificate does not hold at this time: {}",
                    "The broker's does. See what is said of this device's clock; if it is right, the site has to renew the gateway's certificate.",
                ],
                [
                    "ゲートウェイの証明書が有効期間外です: {}",
                    "ブローカーの証明書は有効です。この端末の時計の結果を確認し、時計が正しい場合はゲートウェイの証明書の更新を管理者に依頼してください。",
                ],
            ),
            Self::GatewayRole => bad(
                [
                    "Sessions are answered by a server that is ours, and not a gateway: {}",
                    "The site has to give its gateway the certificate that was made for it.",
                ],
                [
                    "セッションの接続先はゲートウェイではありません: {}",
                    "ゲートウェイ用に発行された証明書を設定するよう、管理者に依頼してください。",
                ],
            ),
            Self::GatewaySilent => bad(
                [
                    "The gateway does not answer: {}",
                    "Try again in a moment, then ask the service desk.",
                ],
                [
                    "ゲートウェイから応答がありません: {}",
                    "しばらくしてからもう一度試し、続くようなら窓口にお問い合わせください。",
                ],
            ),
            Self::BrokerReady => good(
                "The broker takes agents of version {}.",
                "ブローカーはこのエージェント ({}) を受け付けます。",
            ),
            Self::BrokerSilent => bad(
                [
                    "The broker did not greet: {}",
                    "Try again in a moment, then ask the service desk.",
                ],
                [
                    "ブローカーから返事がありません: {}",
                    "しばらくしてからもう一度試し、続くようなら窓口にお問い合わせください。",
                ],
            ),
            Self::BrokerOther => bad(
                ["The broker and this agent do not fit together: {}", "Ask the service desk."],
                [
                    "ブローカーとこのエージェントは接続できません: {}",
                    "窓口にお問い合わせください。",
                ],
            ),
            Self::AgentOld => bad(
                ["The broker wants an agent of version {} or later.", "Update this program."],
                [
                    "ブローカーはバージョン {} 以降のエージェントを求めています。",
                    "このプログラムを更新してください。",
                ],
            ),
            Self::ClockRight => good(
                "This device's clock is within {} s of the broker's.",
                "この端末の時計とブローカーの時計の差は {} 秒です。",
            ),
            Self::ClockOff => bad(
                [
                    "This device's clock is {} s off the broker's.",
                    "Set the clock; certificates are checked against it.",
                ],
                [
                    "この端末の時計は、ブローカーの時計と {} 秒ずれています。",
                    "時計を合わせてください。証明書の確認に使われます。",
                ],
            ),
            Self::ClockWrong => bad(
                [
                    "The clock is the likely cause (Unix seconds): {}",
                    "Set this device's clock, its date first.",
                ],
                [
                    "時計のずれが原因と考えられます (Unix 秒): {}",
                    "この端末の時計を、日付から確認して合わせてください。",
                ],
            ),
            Self::PathWide => {
                good("Packets of {} bytes get through.", "{} バイトのパケットが通ります。")
            }
            Self::PathNarrow => bad(
                [
                    "Packets of {} bytes do not get through.",
                    "Sessions work. Ask whoever runs this network why not; a tunnel is often the reason.",
                ],
                [
                    "{} バイトのパケットが通りません。",
                    "利用はできます。通らない理由 (VPN などのトンネル) をネットワーク管理者に確認してください。",
                ],
            ),
            Self::NotSwappable => good(
                "Passwords in memory do not reach a swap.",
                "メモリ上のパスワードがスワップに書き出されることはありません。",
            ),
            Self::Swappable => bad(
                [
                    "Passwords in memory may reach the swap.",
                    "Start this program without a limit of locked memory (systemd: LimitMEMLOCK=infinity), or have no swap or an encrypted one.",
                ],
                [
                    "メモリ上のパスワードがスワップに書き出される可能性があります。",
                    "ロックできるメモリの上限をなくして起動するか (systemd では LimitMEMLOCK=infinity)、スワップを無効化または暗号化してください。",
                ],
            ),
            Self::FreerdpGood => good(
                "FreeRDP {} is here and can do what is needed.",
                "FreeRDP {} があり、必要な機能を備えています。",
            ),
            Self::FreerdpAbsent => bad(
                [
                    "FreeRDP is not here.",
                    "Install it: freerdp2-x11 on Debian 12, freerdp3-x11 later; or name another viewer.",
                ],
                [
                    "FreeRDP がありません。",
                    "インストールするか (Debian 12 では freerdp2-x11、以降は freerdp3-x11)、別のビューアを指定してください。",
                ],
            ),
            Self::FreerdpLacks => bad(
                [
                    "FreeRDP {} cannot be given a pinned certificate and a password in secret.",
                    "Install 2.11 or a later one.",
                ],
                [
                    "FreeRDP {} では、証明書の固定とパスワードの安全な受け渡しができません。",
                    "2.11 以降をインストールしてください。",
                ],
            ),
            Self::FreerdpSilent => bad(
                [
                    "FreeRDP does not tell its version: {}",
                    "Run this where the desktop is to be shown: FreeRDP needs the display.",
                ],
                [
                    "FreeRDP のバージョンを確認できません: {}",
                    "デスクトップを表示する画面上で実行してください。FreeRDP には画面が必要です。",
                ],
            ),
        }
    }
}
