//! `heap env`: what to set so that a service is started with the library.

use crate::witness::library;
use reprieve_heap_table::layout::{OWN_SLABS, OWN_START_BYTES, SLAB_BYTES};
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};

/// Where the text goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Place {
    /// A shell that then starts the program.
    Shell,
    /// A systemd unit, or its drop-in.
    Systemd,
    /// Options of `docker run` and `podman run`.
    Docker,
    /// A container in a pod's specification.
    Kubernetes,
}

/// What to set, and what it costs.
#[derive(Debug, Clone, Serialize)]
pub struct HeapEnv {
    /// The library, readable by everybody.
    pub library: PathBuf,
    /// Variables of the service's environment.
    pub environment: Environment,
    /// Mean bytes between sampled allocations.
    pub period_bytes: u64,
    /// Memory that the first process of a service has for its table at the start,
    /// charged to it; each child of a fork has nearly as much.
    pub table_start_bytes: u64,
    /// Most that the table of a service and the children it forks can have.
    pub table_max_bytes: u64,
}

/// The variables.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub struct Environment {
    /// Read by the dynamic linker (ld.so(8)).
    pub ld_preload: String,
    /// Read by the library.
    pub reprieve_heap: String,
}

/// Folder where services find the library, also after the machine was started
/// again: for root one that all can read.
fn directory() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/usr/local/lib/reprieve");
    }
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".local/share");
    data.unwrap_or_else(home).join("reprieve")
}

impl HeapEnv {
    /// Installs the library in `folder`, or where it is usually, and tells what to
    /// set for one sample in `period_bytes` on average.
    ///
    /// # Errors
    ///
    /// When the library cannot be written, or a path has characters that the
    /// dynamic linker takes for separators.
    pub fn install(folder: Option<&Path>, period_bytes: u64) -> io::Result<Self> {
        let folder = folder.map_or_else(directory, Path::to_owned);
        let with_path = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", folder.display()));
        let library =
            library::install_as(&folder, "libreprieve_heap.so").and_then(std::path::absolute).map_err(with_path)?;
        // ld.so(8): the list is separated by spaces or colons, and nothing quotes.
        let text = library.to_str().filter(|text| !text.contains([' ', ':', '"', '\'', '\\', '$', '%']));
        let text =
            text.ok_or_else(|| io::Error::other(format!("{folder:?}: LD_PRELOAD takes no such path; use --dir")))?;
        let environment = Environment { ld_preload: text.to_owned(), reprieve_heap: format!("own:{period_bytes}") };
        Ok(HeapEnv {
            library,
            environment,
            period_bytes,
            table_start_bytes: OWN_START_BYTES as u64,
            table_max_bytes: (OWN_SLABS * SLAB_BYTES) as u64,
        })
    }

    /// The text for a place; what is no setting is a comment there.
    #[must_use]
    pub fn text(&self, place: Place) -> String {
        let Environment { ld_preload, reprieve_heap } = &self.environment;
        match place {
            // Ours comes last: another malloc stays the program's own.
            Place::Shell => format!(
                "export LD_PRELOAD=${{LD_PRELOAD:+$LD_PRELOAD:}}{ld_preload}\nexport REPRIEVE_HEAP={reprieve_heap}\n"
            ),
            Place::Systemd => format!(
                "# systemctl edit NAME.service, then systemctl restart NAME.service\n[Service]\n\
                 Environment=LD_PRELOAD={ld_preload}\nEnvironment=REPRIEVE_HEAP={reprieve_heap}\n"
            ),
            Place::Docker => {
                format!("-v {ld_preload}:{ld_preload}:ro -e LD_PRELOAD={ld_preload} -e REPRIEVE_HEAP={reprieve_heap}\n")
            }
            Place::Kubernetes => format!(
                "# in the container:\nenv:\n- name: LD_PRELOAD\n  value: \"{ld_preload}\"\n- name: REPRIEVE_HEAP\n  \
                 value: \"{reprieve_heap}\"\nvolumeMounts:\n- name: reprieve-heap\n  mountPath: {ld_preload}\n  \
                 readOnly: true\n# in the pod; the library must be on the node:\nvolumes:\n- name: reprieve-heap\n  \
                 hostPath:\n    path: {ld_preload}\n    type: File\n"
            ),
        }
    }
}
