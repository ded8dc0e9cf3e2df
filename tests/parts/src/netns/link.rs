//! The uplinks' own packets: a process for each, that carries them as it is told.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Result, ensure};

use super::{CHANGE, Host, Uplink};
use crate::{
    package,
    process::{Child, run},
    wait,
};

/// What an uplink loses that is cut, in a thousand packets.
const EVERYTHING: u16 = 1000;

const UPLINK: &str = include_str!("../../network/uplink.c");

/// What an uplink does to each packet, the same both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quality {
    /// How long it is under way.
    pub delay: Duration,
    /// How much longer at most; it keeps the order of packets.
    pub jitter: Duration,
    /// How many of a thousand are lost.
    pub loss_per_mille: u16,
    /// How fast it is, in kilobits a second; as fast as it goes, where there is none.
    pub rate_kbit: Option<u32>,
}

/// The process that carries the packets of an uplink.
pub(super) struct Link {
    process: Child,
    file: PathBuf,
    state: Mutex<LinkState>,
}

struct LinkState {
    quality: Quality,
    is_cut: bool,
    /// How often the process has read the file.
    readings: u32,
}

impl Quality {
    /// Every packet arrives at once.
    pub const PERFECT: Self =
        Self { delay: Duration::ZERO, jitter: Duration::ZERO, loss_per_mille: 0, rate_kbit: None };

    /// An ordinary wireless network.
    pub const WIFI: Self = Self {
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(1),
        loss_per_mille: 0,
        rate_kbit: Some(50_000),
    };

    /// An ordinary telephone.
    pub const LTE: Self = Self {
        delay: Duration::from_millis(30),
        jitter: Duration::from_millis(10),
        loss_per_mille: 5,
        rate_kbit: Some(20_000),
    };
}

impl Link {
    pub(super) fn start(
        uplink: Uplink,
        program: &Path,
        (client, router): (&Host, &Host),
        (mtu, has_ipv6): (u16, bool),
        quality: Quality,
        folder: &Path,
    ) -> Result<Self> {
        let (name, network) = (uplink.name(), uplink.network());
        let file = folder.join(format!("{name}.quality"));
        let state = LinkState { quality, is_cut: false, readings: 1 };
        fs::write(&file, state.line())?;
        let mut command = Command::new(program);
        command.args([&client.name, name, &router.name, name]).arg(&file);
        let process = Child::spawn(name, &mut command, folder)?;
        process.ready(|| Ok(process.output().contains("quality 1\n").then_some(())))?;
        for (host, number) in [(client, 2), (router, 1)] {
            host.ip(&format!(
                "address add 10.77.{network}.{number}/24 dev {name}\nlink set {name} up mtu {mtu}\n"
            ))?;
            if has_ipv6 {
                host.ip(&format!(
                    "address add fd77:0:0:{network}::{number}/64 dev {name} nodad\n"
                ))?;
            }
        }
        Ok(Self { process, file, state: Mutex::new(state) })
    }

    pub(super) fn set_quality(&self, quality: Quality) -> Result<()> {
        self.change(|state| state.quality = quality)
    }

    pub(super) fn set_cut(&self, is_cut: bool) -> Result<()> {
        self.change(|state| state.is_cut = is_cut)
    }

    fn change(&self, what: impl FnOnce(&mut LinkState)) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        what(&mut state);
        state.readings += 1;
        let next = self.file.with_extension("next");
        fs::write(&next, state.line())?;
        fs::rename(&next, &self.file)?;
        self.process.hang_up();
        let read = format!("quality {}\n", state.readings);
        wait::until("the uplink to change", CHANGE, || {
            ensure!(self.process.is_running(), "the uplink has ended: {}", self.process.log());
            Ok(self.process.output().contains(&read).then_some(()))
        })
    }
}

impl LinkState {
    fn line(&self) -> String {
        let Quality { delay, jitter, loss_per_mille, rate_kbit } = self.quality;
        let loss = if self.is_cut { EVERYTHING } else { loss_per_mille };
        let rate = rate_kbit.unwrap_or_default();
        format!("{} {} {loss} {rate}\n", delay.as_micros(), jitter.as_micros())
    }
}

/// Makes the program that carries.
pub(super) fn compile(folder: &Path) -> Result<PathBuf> {
    let (source, program) = (folder.join("uplink.c"), folder.join("uplink"));
    fs::write(&source, UPLINK)?;
    let mut compiler = Command::new(package::program("cc")?);
    compiler.args(["-std=gnu11", "-O2", "-Wall", "-Werror", "-o"]).arg(&program).arg(&source);
    run("cc", &mut compiler, b"", CHANGE)?;
    Ok(program)
}
