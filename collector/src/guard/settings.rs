//! What holds for the guard: the configuration, and over it what was typed.

use super::lock;
use crate::cgroup::Glob;
use crate::config::{Config, Guarded, Problems};
use crate::desk;
use crate::incident::store::Limits;
use crate::say::Form;
use crate::snapshot::{Options, Parts};
use std::path::PathBuf;
use std::time::Duration;

/// What was typed.
#[derive(Debug, Clone)]
pub struct Given {
    /// Folder of the configuration.
    pub config: PathBuf,
    /// Cgroups to guard; as configured where there are none.
    pub cgroups: Vec<Glob>,
    /// Whether what would be done is only told, for all of them.
    pub is_dry: bool,
    /// Folder for incidents.
    pub out: Option<PathBuf>,
    /// Whether command lines are recorded.
    pub with_cmdline: bool,
    /// Form of the log; as configured where none was typed.
    pub log: Option<Form>,
}

impl Given {
    /// How a memcg is guarded, over what is configured.
    #[must_use]
    pub fn apply(&self, guarded: Guarded) -> Guarded {
        Guarded { is_dry: guarded.is_dry || self.is_dry, ..guarded }
    }
}

/// What holds, until it is read again.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The configuration.
    pub config: Config,
    /// Cgroups to guard.
    pub cgroups: Vec<Glob>,
    except: Vec<Glob>,
    /// Most OOMs that are answered at the same time.
    pub analysts: usize,
    /// Least time between two incidents.
    pub cooldown: Duration,
    /// Folder for incidents.
    pub out: Option<PathBuf>,
    /// What is kept there.
    pub limits: Limits,
    /// What is recorded.
    pub options: Options,
    /// Folder of the lock, and of the operators' socket.
    pub run_dir: PathBuf,
    /// How persons are asked.
    pub asking: desk::Manner,
}

impl Settings {
    /// Reads them.
    pub fn load(given: &Given) -> Result<Self, Problems> {
        let config = Config::load(&given.config)?;
        let cgroups = if given.cgroups.is_empty() { config.guard_cgroups() } else { given.cgroups.clone() };
        Ok(Settings {
            cgroups,
            except: config.guard_except(),
            analysts: config.guard_analysts(),
            cooldown: config.guard_cooldown(),
            out: given.out.clone().or(config.store_dir()),
            limits: config.limits(),
            options: Options { parts: Parts::usual(given.with_cmdline || config.records_cmdlines()), alone: false },
            asking: config.asking(),
            run_dir: config.guard_run_dir().unwrap_or_else(lock::default_dir),
            config,
        })
    }

    /// Whether the cgroup at this path is to be guarded.
    #[must_use]
    pub fn wants(&self, path: &str) -> bool {
        let is_any = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(path));
        is_any(&self.cgroups) && !is_any(&self.except)
    }
}
