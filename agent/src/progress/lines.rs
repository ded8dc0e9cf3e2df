//! Lines on their way to a reader, who may stop reading.

use std::io::{self, Write};
use std::mem;
use std::time::Duration;

use crate::errand::Errands;

/// Lines that may wait for the reader; what does not fit is lost, but for the last one.
const WAITING_MAX: usize = 64;

/// How long the last lines may take to be written.
const WRITTEN_WITHIN: Duration = Duration::from_secs(1);

/// Takes lines, each ended by a flush, without ever waiting for whoever reads them.
#[derive(Debug)]
pub struct Lines {
    line: Vec<u8>,
    /// The youngest line, where it has no room yet.
    last: Option<Vec<u8>>,
    writer: Errands<Vec<u8>>,
}

impl Lines {
    /// Has lines written to `out`.
    ///
    /// # Errors
    ///
    /// Fails when the system gives no thread.
    pub fn to(mut out: impl Write + Send + 'static) -> io::Result<Self> {
        let writer = Errands::start("progress", WAITING_MAX, move |lines| {
            for line in lines {
                let line: Vec<u8> = line;
                // A reader that went away is no reason to end a session.
                let _ = out.write_all(&line).and_then(|()| out.flush());
            }
        })?;
        Ok(Self { line: Vec::new(), last: None, writer })
    }

    /// Waits until the lines are written, but not for a reader who has stopped.
    pub fn finish(self) {
        self.writer.finish(self.last, WRITTEN_WITHIN);
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let line = mem::take(&mut self.line);
        if line.is_empty() {
            return Ok(());
        }
        if let Some(before) = self.last.take()
            && self.writer.leave(before).is_err()
        {
            // It is lost for the younger one, which has no room either.
            self.last = Some(line);
            return Ok(());
        }
        self.last = self.writer.leave(line).err();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::mpsc::sync_channel;
    use std::thread;
    use std::time::Instant;

    use tegata_proto::code::Code;

    use super::*;
    use crate::progress::{Event, Json, Person as _};

    #[test]
    fn nobody_waits_for_a_reader_who_has_stopped_and_whoever_goes_on_gets_whole_lines() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let (tell, told) = sync_channel(1);
        thread::spawn(move || {
            let mut lines = Lines::to(writer).expect("a thread");
            let mut person = Json::new(&mut lines, Instant::now());
            for _ in 0..10_000 {
                person.tell(&Event::Assigned);
            }
            lines.finish();
            tell.send(())
        });
        told.recv_timeout(Duration::from_secs(20)).expect("it does not wait");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("UTF-8");
        let assigned = |line: &str| {
            let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
            event["event"] == "assigned"
        };
        assert!(text.lines().all(assigned));
        let count = text.lines().count();
        assert!((WAITING_MAX..10_000).contains(&count), "{count}");
    }

    #[test]
    fn whoever_goes_on_reading_before_the_end_is_told_of_the_end() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut lines = Lines::to(writer).expect("a thread");
        let mut person = Json::new(&mut lines, Instant::now());
        for _ in 0..10_000 {
            person.tell(&Event::Assigned);
        }
        person.tell(&Event::Ended { code: Code::LoggedOff });
        let goes_on = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        lines.finish();
        let text = goes_on.join().expect("no panic").expect("UTF-8");
        let last = text.lines().next_back().expect("a line");
        assert!(last.contains(r#""event":"ended""#), "{last}");
        assert!(text.lines().count() < 10_000, "lines were lost");
    }

    #[test]
    fn what_was_said_last_is_written_before_the_end() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut lines = Lines::to(writer).expect("a thread");
        writeln!(lines, "{}{}", 1, 2).and_then(|()| lines.flush()).expect("there is room");
        lines.finish();
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("UTF-8");
        assert_eq!(text, "12\n");
    }
}
