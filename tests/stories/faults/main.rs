//! What goes wrong around a broker, and what of it nobody may notice: directories,
//! desktops, disks, clocks, descriptors, slow readers, the power, and a rush of returns.

#![allow(clippy::unwrap_used, missing_docs)]

mod alarms;
mod clock;
mod descriptors;
mod desktops;
mod directory;
mod disk;
mod power;
mod readers;
mod returns;

const PASSWORD: &str = "Himitsu-1";

/// Prints one figure for whoever reads the run.
fn tell(figure: &serde_json::Value) {
    println!("{figure}");
}
