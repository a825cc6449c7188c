//! The file that node_exporter's textfile collector reads.

use reprieve::metrics::PROGRAM;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Where it is.
pub struct TextFile {
    path: PathBuf,
    /// The same trouble is told once.
    has_told: AtomicBool,
}

impl TextFile {
    /// At a path.
    pub fn new(path: PathBuf) -> Self {
        TextFile { path, has_told: AtomicBool::new(false) }
    }

    /// Writes it anew. By a rename: the collector may be reading it.
    pub fn write(&self, text: &str) {
        match self.replace(text) {
            Ok(()) => self.has_told.store(false, Relaxed),
            Err(error) if !self.has_told.swap(true, Relaxed) => {
                let path = self.path.display();
                eprintln!("{PROGRAM}: {path} cannot be written: {error}; make its folder, or set guard.textfile");
            }
            Err(_) => {}
        }
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        // Not `.prom`, which would be read half-written.
        let new = self.path.with_extension("prom.new");
        let _ = fs::remove_file(&new);
        // Whoever node_exporter runs as has to read it, whatever our umask.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(text.as_bytes())?;
        fs::rename(&new, &self.path)
    }

    /// Without a guard there is nothing to tell: old figures would look like new ones.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reprieve.prom");
        let file = TextFile::new(path.clone());
        file.write("a 1\n");
        file.write("a 2\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "a 2\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        file.remove();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // No folder is told, and no end.
        TextFile::new(dir.path().join("none/reprieve.prom")).write("a 3\n");
    }
}
