//! Figures, and the lines that they are printed as.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Map, Value, json};
use tegata_edge::tls;

use super::machine;
use super::programs::Programs;

/// Prints the lines of one bench.
pub(super) struct Report {
    bench: &'static str,
}

/// Latencies of one measurement.
#[derive(Default)]
pub(super) struct Latencies(Vec<Duration>);

impl Report {
    /// Begins with the circumstances: machine, commit, cipher and configuration.
    pub(super) fn begin(
        bench: &'static str,
        programs: &Programs,
        configuration: &str,
        more: Value,
    ) -> Result<Self> {
        let mut line = json!({
            "circumstances": true,
            "commit": programs.commit,
            "machine": machine::description()?,
            "cipher_tegata": tegata_cipher(),
            "configuration": configuration,
        });
        merge(&mut line, more);
        Ok(Self::begin_as(bench, line))
    }

    /// Begins with circumstances that are known already.
    pub(super) fn begin_as(bench: &'static str, circumstances: Value) -> Self {
        let report = Self { bench };
        report.line(circumstances);
        report
    }

    /// Prints a figure.
    pub(super) fn line(&self, mut fields: Value) {
        merge(&mut fields, json!({ "bench": self.bench }));
        println!("{fields}");
    }

    /// Prints the last line.
    pub(super) fn summary(&self, mut fields: Value) {
        merge(&mut fields, json!({ "summary": true }));
        self.line(fields);
    }
}

impl Latencies {
    pub(super) fn push(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the latency that this share of all stays below, in microseconds; 0 without any.
    pub(super) fn percentile_us(&self, share: f64) -> f64 {
        let all: Vec<_> = self.0.iter().map(|latency| latency.as_secs_f64() * 1e6).collect();
        percentile(&all, share)
    }
}

/// Returns the median; the mean of the middle two of an even number. 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len(), values.get(middle)) {
        (_, None) => 0.0,
        (count, Some(upper)) if count % 2 == 1 => *upper,
        (_, Some(upper)) => f64::midpoint(values[middle - 1], *upper),
    }
}

/// Returns the value that this share of all stays below; 0 of none.
pub(super) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index between 0 and the last"
    )]
    let index = (last as f64 * share).round() as usize;
    values[index]
}

/// Rounds to this many digits behind the point, for reading.
pub(super) fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

/// Rounds each.
pub(super) fn all_rounded(values: &[f64], digits: i32) -> Vec<f64> {
    values.iter().map(|value| rounded(*value, digits)).collect()
}

/// Returns the cipher of our own connections: the server's first choice, which the agent offers.
fn tegata_cipher() -> String {
    let suites = &tls::provider().cipher_suites;
    suites.first().map_or_else(String::new, |suite| format!("{:?}", suite.suite()))
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        let from: Map<_, _> = from;
        into.extend(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_are_those_of_the_book() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
        let mut latencies = Latencies::default();
        (0..=100).rev().for_each(|n| latencies.push(Duration::from_micros(n)));
        assert!((latencies.percentile_us(0.5) - 50.0).abs() < 1e-9);
        assert!((latencies.percentile_us(0.99) - 99.0).abs() < 1e-9);
        assert!(Latencies::default().percentile_us(0.5).abs() < 1e-9);
    }
}
