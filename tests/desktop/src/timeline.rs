//! From the start of the agent to the first picture: what the agent and the viewer reported, in one
//! list.

use serde::{Deserialize, Serialize};

/// When the first picture was painted, as the viewer reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Painted {
    /// Milliseconds from the start of the viewer.
    pub first_frame_ms: u64,
    /// The same instant as Unix time in milliseconds.
    pub first_frame_at_unix_ms: u64,
}

/// The way to a desktop; every time is in milliseconds from the start of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// The broker answered.
    pub connected_ms: u64,
    /// The directory said yes.
    pub authenticated_ms: u64,
    /// A desktop is the person's.
    pub assigned_ms: u64,
    /// The ticket arrived.
    pub ticket_ms: u64,
    /// The session's link is open.
    pub attached_ms: u64,
    /// The desktop is on the screen.
    pub first_frame_ms: u64,
}

/// Why there is no timeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimelineError {
    /// The agent never reported this.
    #[error("the agent did not report `{0}`")]
    Missing(&'static str),
    /// The picture is older than the agent, so the wall clock was set in between.
    #[error("the first picture is older than the agent")]
    ClockSet,
}

/// One line of the agent's `--progress json`.
#[derive(Deserialize)]
struct Event {
    event: String,
    elapsed_ms: u64,
}

impl Timeline {
    /// Adds up the agent's lines and the viewer's report; `started_unix_ms` is when the agent was
    /// started. Of an event that came twice the first counts.
    ///
    /// # Errors
    ///
    /// See [`TimelineError`].
    pub fn new(
        events: &str,
        painted: Painted,
        started_unix_ms: u64,
    ) -> Result<Self, TimelineError> {
        // Lines that are no events come from a viewer that shares the agent's output.
        let events: Vec<Event> =
            events.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let at = |name: &'static str| {
            let found = events.iter().find(|event| event.event == name);
            found.map(|event| event.elapsed_ms).ok_or(TimelineError::Missing(name))
        };
        Ok(Self {
            connected_ms: at("connected")?,
            authenticated_ms: at("authenticated")?,
            assigned_ms: at("assigned")?,
            ticket_ms: at("ticket")?,
            attached_ms: at("attached")?,
            first_frame_ms: painted
                .first_frame_at_unix_ms
                .checked_sub(started_unix_ms)
                .ok_or(TimelineError::ClockSet)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: &str = r#"
{"event":"connecting","elapsed_ms":1}
{"event":"connected","elapsed_ms":4}
not an event
{"event":"authenticated","elapsed_ms":520,"pool":"demo"}
{"event":"assigned","elapsed_ms":530}
{"event":"ticket","elapsed_ms":531}
{"event":"attached","elapsed_ms":540}
{"event":"attached","elapsed_ms":9000}
"#;
    const PAINTED: Painted = Painted { first_frame_ms: 90, first_frame_at_unix_ms: 1_000_650 };

    #[test]
    fn the_way_to_a_desktop_is_counted_from_the_start_of_the_agent() {
        let timeline = Timeline::new(EVENTS, PAINTED, 1_000_000).unwrap();
        assert_eq!(
            serde_json::to_value(timeline).unwrap(),
            serde_json::json!({
                "connected_ms": 4, "authenticated_ms": 520, "assigned_ms": 530,
                "ticket_ms": 531, "attached_ms": 540, "first_frame_ms": 650,
            })
        );
    }

    #[test]
    fn an_agent_that_stopped_on_the_way_has_no_timeline() {
        let cut = EVENTS.replace("ticket", "error");
        let timeline = Timeline::new(&cut, PAINTED, 1_000_000);
        assert_eq!(timeline, Err(TimelineError::Missing("ticket")));
    }

    #[test]
    fn a_picture_older_than_the_agent_is_refused() {
        let timeline = Timeline::new(EVENTS, PAINTED, 1_000_651);
        assert_eq!(timeline, Err(TimelineError::ClockSet));
    }
}
