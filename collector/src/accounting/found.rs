//! What was seen of a memcg's processes and files: plain data, from which the tree
//! is made.

use super::mounts::Kind;
use std::collections::{BTreeMap, BTreeSet};

/// All that was seen. Bytes are of pages that the memcg is charged for, each counted
/// once, unless said otherwise.
#[derive(Debug, Default)]
pub struct Found {
    /// Processes in the order of the incident.
    pub processes: Vec<FoundProcess>,
    /// Anonymous pages that more than one process has mapped, by the name of the
    /// mapping where they were seen first.
    pub common: BTreeMap<String, u64>,
    /// Files, of any kind.
    pub files: BTreeMap<FileKey, FoundFile>,
    /// Sockets by their other end.
    pub sockets: BTreeMap<(Family, String), FoundSockets>,
    /// Bytes waiting in pipes, in whole pages, and how many pipes have some.
    pub pipes: (u64, u64),
    /// SysV segments that nobody has attached: name, and bytes by the kernel's list.
    pub segments: Vec<(String, u64)>,
    /// What is mapped or cached here and charged elsewhere.
    pub elsewhere: u64,
    /// Bytes of a kernel stack.
    pub kernel_stack: u64,
    /// What could not be seen, each a sentence.
    pub gaps: Vec<String>,
}

/// A process.
#[derive(Debug, Default)]
pub struct FoundProcess {
    /// In our PID namespace.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Anonymous pages that it alone has mapped, by mapping.
    pub anonymous: Vec<FoundMapping>,
    /// Threads, each with a kernel stack.
    pub threads: u64,
    /// Page tables, whoever is charged.
    pub page_tables: u64,
    /// Huge pages of hugetlb, whoever is charged.
    pub hugetlb: u64,
    /// Its share of what is swapped out.
    pub swap: u64,
}

/// A mapping, or several of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundMapping {
    /// Its name, for people.
    pub name: String,
    /// Range, if it is one.
    pub range: Option<(u64, u64)>,
    /// How many they are.
    pub mappings: u64,
    /// Its pages.
    pub bytes: u64,
}

/// Which file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileKey {
    /// `major:minor` in hexadecimal, as maps has it.
    pub device: String,
    /// Its inode.
    pub inode: u64,
}

/// A file.
#[derive(Debug, Default)]
pub struct FoundFile {
    /// As the first process sees it.
    pub path: String,
    /// Where it lies; `None` until that is known.
    pub kind: Option<Kind>,
    /// Pages.
    pub bytes: u64,
    /// Pages in the cache of which it is not known who is charged; not in `bytes`.
    pub unsure: u64,
    /// What of the file is to be written, whoever is charged.
    pub dirty: u64,
    /// Who has it mapped or open.
    pub pids: BTreeSet<i32>,
    /// A process and a range by which it is to be had.
    pub mapped: Option<(i32, u64, u64)>,
    /// Whether more than page tables were looked at.
    pub is_looked_at: bool,
}

impl Found {
    /// Pages of files of a kind.
    #[must_use]
    pub fn of_kind(&self, kind: Kind) -> u64 {
        self.files.values().filter(|file| file.kind == Some(kind)).map(|file| file.bytes).sum()
    }
}

impl FileKey {
    /// Of what stat(2) tells.
    #[must_use]
    pub fn of(meta: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let dev = meta.dev();
        FileKey { device: format!("{:02x}:{:02x}", libc::major(dev), libc::minor(dev)), inode: meta.ino() }
    }
}

/// What socket buffers are charged as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Like other kernel memory: unix(7) and the like.
    Kernel,
    /// By a counter of their own: TCP and UDP.
    Network,
}

/// Sockets with the same other end.
#[derive(Debug, Default)]
pub struct FoundSockets {
    /// How many.
    pub sockets: u64,
    /// Their buffers.
    pub bytes: u64,
    /// Who has them.
    pub pids: Vec<i32>,
}
