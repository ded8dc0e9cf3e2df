//! Draws what `roam` printed: a row for each case, a dot for each run, a line at its median.

use std::io::{BufRead, Write};

use anyhow::{Context as _, Result, anyhow, ensure};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::Deserialize;

use super::report::{median, percentile};

/// Size of the picture, in pixels.
const WIDTH: u32 = 820;
const ROW: u32 = 46;
const FRAME: u32 = 96;

/// Most rows that are drawn.
const ROWS_MAX: usize = 16;

/// Most bytes that are read.
const INPUT_MAX: u64 = 4 * 1024 * 1024;

/// A line that is drawn; others are passed over.
#[derive(Deserialize)]
struct Stall {
    case: String,
    nat: bool,
    each_ms: Vec<f64>,
}

/// Draws the lines of one `roam` as SVG.
pub(super) fn draw(lines: impl BufRead, mut picture: impl Write) -> Result<()> {
    let mut stalls = Vec::new();
    for line in std::io::Read::take(lines, INPUT_MAX).lines() {
        let line: serde_json::Value = serde_json::from_str(&line?).context("a line is no JSON")?;
        if line["figure"] == "stall" {
            stalls.push(serde_json::from_value::<Stall>(line)?);
        }
    }
    let figures = 1..=ROWS_MAX;
    ensure!(figures.contains(&stalls.len()), "{} lines have a stall to draw", stalls.len());
    let mut svg = String::new();
    plot(&stalls, &mut svg).map_err(|error| anyhow!("the picture cannot be drawn: {error}"))?;
    Ok(picture.write_all(svg.as_bytes())?)
}

fn plot(stalls: &[Stall], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let rows = stalls.len();
    let height = FRAME + ROW * u32::try_from(rows)?;
    let longest = stalls.iter().flat_map(|of| &of.each_ms).copied().fold(0.0, f64::max);
    let right = ((longest * 1.1 / 50.0).ceil() * 50.0).max(50.0);
    let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    #[expect(clippy::cast_precision_loss, reason = "few rows")]
    let top = rows as f64;
    let mut chart = ChartBuilder::on(&root)
        .caption("How long a session stands still", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(210)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(TRANSPARENT)
        .x_desc("milliseconds; a dot is a run, the bar the median")
        .x_label_formatter(&|ms| format!("{ms:.0}"))
        .draw()?;
    let area = chart.plotting_area();
    let (label, number) = (("sans-serif", 13).into_font(), ("sans-serif", 11).into_font());
    for (n, Stall { case, nat, each_ms }) in stalls.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "few rows")]
        let middle = top - n as f64 - 0.5;
        let text = format!("{}{}", case.replace('_', " "), if *nat { ", NAT" } else { "" });
        let style = label.clone().into_text_style(&root).pos(Pos::new(HPos::Right, VPos::Center));
        let (left, y) = area.map_coordinate(&(0.0, middle));
        root.draw(&Text::new(text, (left - 10, y), style))?;
        for ms in each_ms {
            area.draw(&Circle::new((*ms, middle), 3, BLUE.mix(0.35).filled()))?;
        }
        let typical = median(each_ms);
        let bar = [(typical, middle - 0.3), (typical, middle + 0.3)];
        area.draw(&PathElement::new(bar, BLUE.stroke_width(2)))?;
        let said = format!("{typical:.0} ms, p95 {:.0} ms", percentile(each_ms, 0.95));
        let style = number.clone().into_text_style(&root).pos(Pos::new(HPos::Left, VPos::Bottom));
        let (x, y) = area.map_coordinate(&(typical, middle + 0.3));
        root.draw(&Text::new(said, (x + 4, y + 2), style))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_its_row_and_every_run_its_dot() {
        let lines = [
            r#"{"bench":"roam","circumstances":true}"#,
            r#"{"figure":"stall","case":"address_change","nat":false,"each_ms":[40.5,60.0]}"#,
            r#"{"figure":"stall","case":"outage","nat":true,"each_ms":[310.0]}"#,
            r#"{"bench":"roam","summary":true}"#,
        ];
        let mut picture = Vec::new();
        draw(lines.join("\n").as_bytes(), &mut picture).unwrap();
        let picture = String::from_utf8(picture).unwrap();
        assert!(picture.starts_with("<svg"), "{picture}");
        for said in ["address change", "outage, NAT", "310 ms", "50 ms, p95 60 ms"] {
            assert!(picture.contains(said), "{said} in {picture}");
        }
        assert_eq!(picture.matches("<circle").count(), 3);
    }

    #[test]
    fn what_has_nothing_to_draw_is_no_picture() {
        for lines in ["", "{}", "not JSON", r#"{"figure":"stall","case":"x"}"#] {
            let mut picture = Vec::new();
            assert!(draw(lines.as_bytes(), &mut picture).is_err(), "{lines}");
            assert!(picture.is_empty());
        }
    }
}
