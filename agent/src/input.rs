//! When the thin client was last touched, by the word of its X server, and when the
//! gateway is told of that.
//!
//! A hint: without a display, or where the server has no such extension, nothing is
//! told, and the gateway then ends nobody for want of input.

use std::future::pending;
use std::thread;
use std::time::{Duration, Instant as Moment};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use x11rb::connection::{Connection as _, RequestConnection as _};
use x11rb::protocol::screensaver::{self, ConnectionExt as _};
use x11rb::rust_connection::RustConnection;

/// How often the X server is asked.
const ASKED_EVERY: Duration = Duration::from_secs(1);

/// By how much a touch has to be later than the last one to be another: the server
/// counts milliseconds, and the question takes some.
const LATER: Duration = Duration::from_millis(250);

/// How often a gateway may want to know, at the most and at the least.
const EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(1));

/// When the thin client was last touched.
pub(crate) struct Input(Option<watch::Receiver<Instant>>);

/// When a gateway is told of it.
pub(crate) struct Reports<'a> {
    input: &'a Input,
    every: Option<Duration>,
    told: Option<Told>,
}

/// What a gateway was told last, and when.
#[derive(Clone, Copy)]
struct Told {
    at: Instant,
    touched: Instant,
}

impl Input {
    /// Begins to ask the X server of this environment, in a thread of its own, since an
    /// answer may take for ever.
    pub(crate) fn watch() -> Self {
        if std::env::var_os("DISPLAY").is_none_or(|display| display.is_empty()) {
            return Self(None);
        }
        let (tell, told) = watch::channel(Instant::now());
        let thread = thread::Builder::new().name("input".into());
        match thread.spawn(move || ask(&tell)) {
            // It ends once nobody wants to know any more.
            Ok(_) => Self(Some(told)),
            Err(error) => {
                tracing::warn!(%error, "Nobody asks for input");
                Self(None)
            }
        }
    }
}

fn ask(tell: &watch::Sender<Instant>) {
    if let Err(error) = ask_the_server(tell) {
        tracing::info!(error = &*error, "The X server does not tell of input");
    }
}

fn ask_the_server(tell: &watch::Sender<Instant>) -> Result<(), Box<dyn std::error::Error>> {
    let (connection, screen) = RustConnection::connect(None)?;
    if connection.extension_information(screensaver::X11_EXTENSION_NAME)?.is_none() {
        return Err("it has no screen saver".into());
    }
    let root = connection.setup().roots[screen].root;
    while !tell.is_closed() {
        let idle = connection.screensaver_query_info(root)?.reply()?.ms_since_user_input;
        let idle = Duration::from_millis(idle.into());
        if let Some(touched) = Moment::now().checked_sub(idle).map(Instant::from_std) {
            tell.send_if_modified(|before| {
                let is_later = touched > *before + LATER;
                if is_later {
                    *before = touched;
                }
                is_later
            });
        }
        thread::sleep(ASKED_EVERY);
    }
    Ok(())
}

impl<'a> Reports<'a> {
    /// Begins with what a gateway wants.
    pub(crate) fn new(input: &'a Input, every_ms: Option<u64>) -> Self {
        let mut reports = Self { input, every: None, told: None };
        reports.wanted(every_ms);
        reports
    }

    /// The gateway wants to know so often from now on, or not at all.
    pub(crate) fn wanted(&mut self, every_ms: Option<u64>) {
        let (shortest, longest) = EVERY;
        self.every = every_ms.map(|ms| Duration::from_millis(ms).clamp(shortest, longest));
    }

    /// Waits until the gateway is to be told.
    pub(crate) async fn due(&self) {
        let (Some(every), Some(input)) = (self.every, &self.input.0) else {
            return pending().await;
        };
        let mut input = input.clone();
        loop {
            let touched = *input.borrow_and_update();
            let at = due(every, self.told, touched).unwrap_or_else(Instant::now);
            tokio::select! {
                () = sleep_until(at) => return,
                changed = input.changed() => if changed.is_err() {
                    return pending().await;
                },
            }
        }
    }

    /// Returns for how long nobody has touched the thin client, in milliseconds, and
    /// notes that it is told.
    pub(crate) fn tell(&mut self) -> u64 {
        let at = Instant::now();
        let touched = self.input.0.as_ref().map_or(at, |input| *input.borrow());
        self.told = Some(Told { at, touched });
        u64::try_from(at.duration_since(touched).as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns the same for another link.
    pub(crate) fn again(&self, every_ms: Option<u64>) -> Self {
        Self::new(self.input, every_ms)
    }
}

/// Returns when a gateway is to be told next; nothing if at once, as for whoever was
/// thought idle and is not.
fn due(every: Duration, told: Option<Told>, touched: Instant) -> Option<Instant> {
    let Told { at, touched: before } = told?;
    let was_idle = at.duration_since(before) >= every;
    if was_idle && touched > before { None } else { Some(at + every) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn input(touched: Instant) -> (watch::Sender<Instant>, Input) {
        let (tell, told) = watch::channel(touched);
        (tell, Input(Some(told)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_is_told_at_once_then_as_often_as_it_wants() {
        let (_tell, input) = input(Instant::now());
        tokio::time::advance(seconds(5)).await;
        let mut reports = Reports::new(&input, Some(15_000));
        let began = Instant::now();
        for n in 0..4 {
            reports.due().await;
            assert_eq!(began.elapsed().as_secs(), n * 15, "the {n}th");
            assert_eq!(reports.tell() / 1_000, 5 + n * 15);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_idle_and_is_not_any_more_is_told_of_at_once() {
        let (tell, input) = input(Instant::now());
        tokio::time::advance(seconds(60)).await;
        let mut reports = Reports::new(&input, Some(15_000));
        reports.due().await;
        assert_eq!(reports.tell(), 60_000);
        let began = Instant::now();
        let touches = async {
            sleep_until(began + seconds(3)).await;
            tell.send_replace(Instant::now());
        };
        tokio::join!(touches, reports.due());
        assert_eq!(began.elapsed().as_secs(), 3);
        reports.tell();
        let touches = async {
            sleep_until(began + seconds(5)).await;
            tell.send_replace(Instant::now());
        };
        tokio::join!(touches, reports.due());
        assert_eq!(began.elapsed().as_secs(), 18, "who is not idle is told of in their time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_of_before_and_a_machine_without_a_display_hear_and_say_nothing() {
        let (_tell, known) = input(Instant::now());
        let nothing = Input(None);
        for reports in [Reports::new(&known, None), Reports::new(&nothing, Some(1))] {
            let waited = tokio::time::timeout(seconds(9_999), reports.due()).await;
            assert!(waited.is_err());
        }
    }
}
