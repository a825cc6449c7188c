//! The guest's kernel: a lean build of Debian's `linux-source-6.12`, cached.
//!
//! Built from the package, not downloaded as a binary: the distribution's own
//! images have 9p and virtio as modules, which a guest without an initramfs
//! cannot load, and none is built with the memory controller's v1 interface
//! and everything else a test asks for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cache::{self, Key, Lock, Scratch};
use super::{config, make};
use crate::deps::{self, Package};

/// The package the source comes from.
const SOURCE_PACKAGE: &str = "linux-source-6.12";
/// Where that package puts it.
const SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";
/// The directory inside that archive.
const TREE: &str = "linux-source-6.12";

const PACKAGES: &[Package] = &[
    Package { name: SOURCE_PACKAGE, why: "the guest kernel's source" },
    Package { name: "build-essential", why: "the guest kernel's compiler" },
    Package { name: "flex", why: "the kernel's configuration tools" },
    Package { name: "bison", why: "the kernel's configuration tools" },
    Package { name: "bc", why: "the kernel's build computes its time constants with it" },
    Package { name: "libelf-dev", why: "the kernel's build checks its objects with objtool" },
    Package { name: "libssl-dev", why: "the kernel's build tools link with it" },
    Package { name: "cpio", why: "the kernel's build packs its root archive with it" },
    Package { name: "kmod", why: "the kernel's build asks for depmod" },
    Package { name: "xz-utils", why: "the kernel's source is compressed with it" },
];

/// A guest kernel that is ready to boot.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// The image, for QEMU's `-kernel`. The configuration it was built with is
    /// the file `config` beside it.
    pub(crate) bzimage: PathBuf,
}

/// Builds the guest's kernel, or finds it in the cache.
///
/// The cache entry is named after all that decides the outcome: the source
/// package's version, the fragments under `kernel/config` and the compiler.
///
/// # Errors
///
/// When a package cannot be installed, an option of the fragments does not
/// hold, or the build fails; then the compiler's errors are in the message.
pub(crate) fn build(root: &Path) -> Result<Kernel> {
    deps::ensure(PACKAGES)?;
    let fragments = config::fragments(root)?;
    let cache = cache::directory()?;
    let entry = cache.join(format!("kernel-{}", key(&fragments)?));
    let kernel = Kernel { bzimage: entry.join("bzImage") };
    if kernel.bzimage.exists() {
        return Ok(kernel);
    }
    let _lock = Lock::take(&cache.join("kernel.lock"))?;
    // Whoever held the lock may have built what we are after.
    if kernel.bzimage.exists() {
        return Ok(kernel);
    }
    // One fixed name, because the lock lets only one build run: what a killed
    // build left is cleared by the next one.
    let scratch = Scratch::make(cache.join("kernel-build"))?;
    let log = cache.join("kernel-build.log");
    // Empties it: the steps of a build append.
    fs::File::create(&log).with_context(|| format!("{}: cannot be made", log.display()))?;
    eprintln!("building the guest's kernel; this happens once and takes some minutes");
    let result = compile(scratch.path(), &fragments, &log);
    let ready = result.with_context(|| format!("the guest's kernel was not built; the log is {}", log.display()))?;
    // The entry holds either both files or does not exist.
    fs::rename(&ready, &entry).with_context(|| format!("{}: cannot be put in place", entry.display()))?;
    Ok(kernel)
}

/// The name of the cache entry: the version for people, the hash for the rest.
fn key(fragments: &[PathBuf]) -> Result<String> {
    let version = stdout(Command::new("dpkg-query").args(["-W", "-f", "${Version}", SOURCE_PACKAGE]))?;
    let compiler = stdout(Command::new("gcc").arg("--version"))?;
    let mut key = Key::new().field(version.as_bytes()).field(compiler.as_bytes());
    for fragment in fragments {
        let text = fs::read(fragment).with_context(|| format!("{}: cannot be read", fragment.display()))?;
        key = key.field(&text);
    }
    Ok(format!("{version}-{}", key.hex()))
}

/// Builds inside `scratch`; returns the directory with the two files to keep.
fn compile(scratch: &Path, fragments: &[PathBuf], log: &Path) -> Result<PathBuf> {
    make::run(Command::new("tar").args(["-xf", SOURCE, "-C"]).arg(scratch), "unpacking", log)?;
    let tree = scratch.join(TREE);
    make::run(make::command(&tree).arg("allnoconfig"), "configuring", log)?;
    make::run(
        make::environment(Command::new("scripts/kconfig/merge_config.sh").current_dir(&tree))
            .args(["-m", ".config"])
            .args(fragments),
        "merging the fragments",
        log,
    )?;
    make::run(make::command(&tree).arg("olddefconfig"), "configuring", log)?;
    config::verify(&tree.join(".config"), fragments)?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    make::run(make::command(&tree).arg(format!("-j{jobs}")).arg("bzImage"), "compiling", log)?;

    let ready = scratch.join("ready");
    fs::create_dir(&ready).with_context(|| format!("{}: cannot be made", ready.display()))?;
    for (built, kept) in [("arch/x86/boot/bzImage", "bzImage"), (".config", "config")] {
        let built = tree.join(built);
        fs::copy(&built, ready.join(kept)).with_context(|| format!("{}: cannot be kept", built.display()))?;
    }
    Ok(ready)
}

/// What a command that must succeed says, without the final line break.
fn stdout(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?} cannot be run"))?;
    if !output.status.success() {
        bail!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}
