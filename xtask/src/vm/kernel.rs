//! The guest's kernels: lean builds of Debian's `linux-source-6.12`, cached.
//!
//! Built from the package, not downloaded as a binary: the distribution's own
//! images have 9p and virtio as modules, which a guest without an initramfs
//! cannot load, and none is built with the memory controller's v1 interface
//! and everything else a test asks for.

use std::collections::BTreeSet;
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
pub(super) const TREE: &str = "linux-source-6.12";

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

/// What the kernel with the series needs besides: Rust in the kernel wants LLVM,
/// and a compiler whose library's source is at hand.
const RUST_PACKAGES: &[Package] = &[
    Package { name: "clang-19", why: "the compiler of a kernel with Rust in it" },
    Package { name: "lld-19", why: "the linker of a kernel with Rust in it" },
    Package { name: "llvm-19", why: "the binary tools of a kernel with Rust in it" },
    Package { name: "libclang-19-dev", why: "bindgen reads the kernel's C headers with it" },
    Package { name: "rustc-web", why: "the Rust compiler for the kernel" },
    Package { name: "rust-web-src", why: "the kernel builds its own `core` from it" },
];
const SERIES_PACKAGES: &[Package] = &[
    Package { name: "patch", why: "the series is applied with it" },
    Package { name: "perl", why: "the kernel's style checker is written in it" },
];
/// Debian's Rust compiler, which has the library's source; rustup's may not.
const RUSTC: &str = "/usr/bin/rustc";
/// What makes Rust of the kernel's C headers; installed where there is none.
const BINDGEN: &str = "0.72.1";
/// The series.
const SERIES: &str = "kernel/patches/6.12";
/// Its driver, to be read and built alone.
const DRIVER: &str = "kernel/driver/oom_reserve.rs";

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Flavor {
    /// As Debian has it
    Stock,
    /// With the series of kernel/patches and its device
    Reserve,
    /// Configured and compiled like `Reserve`, without the series: to compare with
    Baseline,
    /// `Lockdep` whose device is a module, which is beside the image
    Module,
    /// `Reserve` that minds the order of locks and sleeping under them
    Lockdep,
    /// `Reserve` that minds memory used after it was freed
    Kasan,
    /// `Reserve` that minds data races
    Kcsan,
}

impl Flavor {
    /// For people, the first part of its name in the cache, and where it has
    /// fragments besides the common ones.
    fn traits(self) -> (&'static str, &'static str, &'static [&'static str]) {
        match self {
            Flavor::Stock => ("the guest's kernel", "kernel", &["stock"]),
            Flavor::Reserve => ("the guest's kernel with the series", "reserve", &["reserve"]),
            Flavor::Baseline => ("a kernel like it without the series", "baseline", &["baseline"]),
            Flavor::Module => (
                "that kernel with lockdep and the device as a module",
                "module",
                &["reserve", "debug/lockdep.config", "debug/module.config"],
            ),
            Flavor::Lockdep => ("that kernel with lockdep", "lockdep", &["reserve", "debug/lockdep.config"]),
            Flavor::Kasan => ("that kernel with KASAN", "kasan", &["reserve", "debug/kasan.config"]),
            Flavor::Kcsan => ("that kernel with KCSAN", "kcsan", &["reserve", "debug/kcsan.config"]),
        }
    }
}

/// A guest kernel that is ready to boot.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// The image, for QEMU's `-kernel`. The configuration it was built with is
    /// the file `config` beside it.
    pub(crate) bzimage: PathBuf,
}

/// Builds a kernel for guests, or finds it in the cache.
///
/// The cache entry is named after all that decides the outcome: the source
/// package's version, the configuration's fragments, the patches, the compilers.
///
/// # Errors
///
/// When a package cannot be installed, a patch does not apply, an option of the
/// fragments does not hold, or the build fails; then the compiler's errors are in
/// the message.
pub(crate) fn build(root: &Path, flavor: Flavor) -> Result<Kernel> {
    let cache = cache::directory()?;
    let recipe = Recipe::new(root, flavor, &cache)?;
    let entry = cache.join(recipe.name()?);
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
    eprintln!("building {}; this happens once and takes some minutes", recipe.what);
    let result = recipe.compile(scratch.path(), &log);
    let ready = result.with_context(|| format!("{} was not built; the log is {}", recipe.what, log.display()))?;
    // The entry holds either both files or does not exist.
    fs::rename(&ready, &entry).with_context(|| format!("{}: cannot be put in place", entry.display()))?;
    Ok(kernel)
}

/// All that decides what a kernel becomes.
struct Recipe {
    /// For people.
    what: &'static str,
    /// First part of its name in the cache.
    prefix: &'static str,
    fragments: Vec<PathBuf>,
    /// In the order in which they apply.
    patches: Vec<PathBuf>,
    /// Commands whose version matters.
    compilers: Vec<PathBuf>,
    toolchain: Toolchain,
}

/// How make is run.
#[derive(Clone, Debug, Default)]
pub(super) struct Toolchain {
    /// What make is told.
    arguments: Vec<String>,
    /// Where programs are looked up.
    path: Option<String>,
}

impl Toolchain {
    /// make in a tree.
    pub(super) fn make(&self, tree: &Path) -> Command {
        let mut command = make::command(tree);
        self.environment(&mut command).args(&self.arguments);
        command
    }

    /// What the kernel's scripts need around them.
    pub(super) fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs(self.path.iter().map(|path| ("PATH", path)));
        make::environment(command)
    }
}

/// The compilers of a kernel with Rust in it, installed if they are absent.
///
/// # Errors
///
/// When a package or bindgen cannot be installed.
pub(super) fn toolchain() -> Result<Toolchain> {
    deps::ensure(PACKAGES)?;
    deps::ensure(RUST_PACKAGES)?;
    deps::ensure(SERIES_PACKAGES)?;
    let cache = cache::directory()?;
    install_bindgen(&bindgen(&cache), &cache)?;
    Ok(Toolchain {
        arguments: vec!["LLVM=-19".to_owned(), format!("RUSTC={RUSTC}"), format!("HOSTRUSTC={RUSTC}")],
        // rustup's compilers stay out of it.
        path: Some(format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", cache.join("tools/bin").display())),
    })
}

/// Unpacks the source into `folder`, as [`TREE`], and applies patches.
pub(super) fn unpack(folder: &Path, patches: &[PathBuf], log: &Path) -> Result<()> {
    make::run(Command::new("tar").args(["-xf", SOURCE, "-C"]).arg(folder), "unpacking", log)?;
    patches.iter().try_for_each(|patch| apply_one(&folder.join(TREE), patch, log))
}

/// Applies a patch.
pub(super) fn apply_one(tree: &Path, patch: &Path, log: &Path) -> Result<()> {
    let step = format!("applying {}", patch.file_name().unwrap_or_default().to_string_lossy());
    make::run(&mut apply(tree, patch), &step, log)
}

impl Recipe {
    /// Installs what it needs.
    fn new(root: &Path, flavor: Flavor, cache: &Path) -> Result<Self> {
        deps::ensure(PACKAGES)?;
        let (what, prefix, places) = flavor.traits();
        let folder = root.join("kernel/config");
        let mut fragments = config::fragments(&folder)?;
        // Later ones win.
        for place in places.iter().map(|place| folder.join(place)) {
            fragments.extend(if place.is_dir() { config::fragments(&place)? } else { vec![place] });
        }
        let stock = Recipe {
            what,
            prefix,
            fragments,
            patches: Vec::new(),
            compilers: vec!["gcc".into()],
            toolchain: Toolchain::default(),
        };
        if flavor == Flavor::Stock {
            return Ok(stock);
        }
        Ok(Recipe {
            patches: if flavor == Flavor::Baseline { Vec::new() } else { series(root)? },
            toolchain: toolchain()?,
            compilers: vec!["clang-19".into(), RUSTC.into(), bindgen(cache)],
            ..stock
        })
    }

    /// The name of the cache entry: the version for people, the hash for the rest.
    fn name(&self) -> Result<String> {
        let version = source_version()?;
        let mut key = Key::new().field(version.as_bytes());
        for compiler in &self.compilers {
            key = key.field(stdout(Command::new(compiler).arg("--version"))?.as_bytes());
        }
        let read =
            |file: &Path| fs::read_to_string(file).with_context(|| format!("{}: cannot be read", file.display()));
        for fragment in &self.fragments {
            key = key.field(read(fragment)?.as_bytes());
        }
        for patch in &self.patches {
            let changes = of_image(&read(patch)?);
            if !changes.is_empty() {
                key = key.field(changes.as_bytes());
            }
        }
        Ok(format!("{}-{version}-{}", self.prefix, key.hex()))
    }

    /// Builds inside `scratch`; returns the directory with the files to keep.
    fn compile(&self, scratch: &Path, log: &Path) -> Result<PathBuf> {
        unpack(scratch, &self.patches, log)?;
        let tree = scratch.join(TREE);
        make::run(self.toolchain.make(&tree).arg("allnoconfig"), "configuring", log)?;
        let mut merge = Command::new("scripts/kconfig/merge_config.sh");
        self.toolchain.environment(merge.current_dir(&tree)).args(["-m", ".config"]).args(&self.fragments);
        make::run(&mut merge, "merging the fragments", log)?;
        make::run(self.toolchain.make(&tree).arg("olddefconfig"), "configuring", log)?;
        config::verify(&tree.join(".config"), &self.fragments)?;
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        make::run(self.toolchain.make(&tree).arg(format!("-j{jobs}")).arg("bzImage"), "compiling", log)?;
        let text = fs::read_to_string(tree.join(".config")).context("the configuration cannot be read")?;
        if text.contains("\nCONFIG_OOM_RESERVE=m\n") {
            make::run(
                self.toolchain.make(&tree).arg(format!("-j{jobs}")).arg("modules"),
                "compiling the modules",
                log,
            )?;
        }

        let ready = scratch.join("ready");
        fs::create_dir(&ready).with_context(|| format!("{}: cannot be made", ready.display()))?;
        let module = tree
            .join("drivers/misc/oom_reserve.ko")
            .exists()
            .then_some(("drivers/misc/oom_reserve.ko", "oom_reserve.ko"));
        for (built, kept) in [("arch/x86/boot/bzImage", "bzImage"), (".config", "config")].into_iter().chain(module) {
            let built = tree.join(built);
            fs::copy(&built, ready.join(kept)).with_context(|| format!("{}: cannot be kept", built.display()))?;
        }
        Ok(ready)
    }
}

/// The version of the kernel's source.
pub(super) fn source_version() -> Result<String> {
    deps::ensure(PACKAGES)?;
    stdout(Command::new("dpkg-query").args(["-W", "-f", "${Version}", SOURCE_PACKAGE]))
}

/// What of a patch can make a difference to the image: the changes of files that are
/// compiled into it. An edit of a test, of documentation or of a patch's message is no
/// reason to compile a kernel.
fn of_image(patch: &str) -> String {
    let aside =
        |file: &str| ["tools/testing/", "Documentation/", "MAINTAINERS"].iter().any(|path| file.starts_with(path));
    let mut within = false;
    let mut changes = String::new();
    for line in patch.split_inclusive('\n') {
        if let Some(files) = line.strip_prefix("diff --git a/") {
            within = !aside(files);
        }
        if within {
            changes.push_str(line);
        }
    }
    changes
}

/// The patches, in the order in which they apply.
///
/// # Errors
///
/// When there are none.
pub(crate) fn series(root: &Path) -> Result<Vec<PathBuf>> {
    let folder = root.join(SERIES);
    let unreadable = || format!("{}: the series cannot be listed", folder.display());
    let mut patches = Vec::new();
    for entry in fs::read_dir(&folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // The cover letter changes nothing.
        if name.ends_with(".patch") && !name.starts_with("0000-") {
            patches.push(path);
        }
    }
    if patches.is_empty() {
        bail!("{}: holds no patches; is this the project's root?", folder.display());
    }
    patches.sort();
    Ok(patches)
}

/// Whether each patch of the series applies to what the ones before it leave, has
/// nothing that the kernel's own style checker minds, and whether the driver here is
/// the one that the series adds.
///
/// # Errors
///
/// What the first patch that fails is told.
pub(crate) fn check_series(root: &Path) -> Result<()> {
    deps::ensure(PACKAGES)?;
    deps::ensure(SERIES_PACKAGES)?;
    let cache = cache::directory()?;
    let _lock = Lock::take(&cache.join("series.lock"))?;
    let scratch = Scratch::make(cache.join("series-check"))?;
    let log = cache.join("series-check.log");
    fs::File::create(&log).with_context(|| format!("{}: cannot be made", log.display()))?;
    let patches = series(root)?;
    let tree = unpack_parts(scratch.path(), &["scripts"], &patches, &log)?;
    for patch in patches {
        let name = patch.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut checker = Command::new("scripts/checkpatch.pl");
        checker.args(["--no-tree", "--strict", "--terse", "--no-summary"]).arg(&patch).current_dir(&tree);
        let output = checker.output().with_context(|| format!("{checker:?} cannot be run"))?;
        if !output.status.success() || !output.stdout.is_empty() {
            bail!("checkpatch minds {name}:\n{}", String::from_utf8_lossy(&output.stdout));
        }
        make::run(&mut apply(&tree, &patch), &format!("applying {name}"), &log)?;
    }
    let (ours, theirs) = (root.join(DRIVER), tree.join("drivers/misc/oom_reserve.rs"));
    let read = |path: &Path| fs::read(path).with_context(|| format!("{}: cannot be read", path.display()));
    if read(&ours)? != read(&theirs)? {
        bail!("{} is not the driver that the series adds; copy the one to the other", ours.display());
    }
    Ok(())
}

/// Unpacks `parts` of the kernel's source into `scratch`, and what patches change;
/// returns the tree.
pub(super) fn unpack_parts(scratch: &Path, parts: &[&str], patches: &[PathBuf], log: &Path) -> Result<PathBuf> {
    let mut unpack = Command::new("tar");
    unpack.args(["-xf", SOURCE, "-C"]).arg(scratch);
    unpack.args(parts.iter().map(|part| format!("{TREE}/{part}")));
    // What lies in one of the parts comes with it.
    let within = |file: &&String| !parts.iter().any(|part| file.starts_with(part));
    unpack.args(changed_files(patches)?.iter().filter(within).map(|file| format!("{TREE}/{file}")));
    make::run(&mut unpack, "unpacking", log)?;
    Ok(scratch.join(TREE))
}

/// Files of the kernel that patches change, but for those that they add.
fn changed_files(patches: &[PathBuf]) -> Result<BTreeSet<String>> {
    let (mut changed, mut added) = (BTreeSet::new(), BTreeSet::new());
    for patch in patches {
        let text = fs::read_to_string(patch).with_context(|| format!("{}: cannot be read", patch.display()))?;
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.windows(2) {
            let [from, to] = pair else { continue };
            let Some(file) = to.strip_prefix("+++ b/") else { continue };
            let files = if *from == "--- /dev/null" { &mut added } else { &mut changed };
            files.insert(file.to_owned());
        }
    }
    Ok(&changed - &added)
}

/// Applies a patch, not even a line off: what was reviewed is what is built.
pub(super) fn apply(tree: &Path, patch: &Path) -> Command {
    let mut command = Command::new("patch");
    command.args(["-p1", "--fuzz=0", "--silent", "--input"]).arg(patch).current_dir(tree);
    command
}

/// Where bindgen is.
fn bindgen(cache: &Path) -> PathBuf {
    cache.join("tools/bin/bindgen")
}

/// Puts bindgen where it is expected, if it is not there.
fn install_bindgen(bindgen: &Path, cache: &Path) -> Result<()> {
    if bindgen.exists() {
        return Ok(());
    }
    let tools = cache.join("tools");
    eprintln!("installing bindgen-cli {BINDGEN} into {}: makes Rust of the kernel's C headers", tools.display());
    let mut cargo = Command::new("cargo");
    cargo.args(["install", "--quiet", "--locked", "bindgen-cli", "--version", BINDGEN, "--root"]).arg(&tools);
    let status = cargo.status().context("cargo cannot be run")?;
    if status.success() { Ok(()) } else { bail!("bindgen-cli could not be installed; cargo's words are above") }
}

/// What a command that must succeed says, without the final line break.
pub(super) fn stdout(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?} cannot be run"))?;
    if !output.status.success() {
        bail!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_documentation_and_messages_do_not_reach_the_image() {
        let change =
            |file: &str| format!("diff --git a/{file} b/{file}\n--- a/{file}\n+++ b/{file}\n@@ -1 +1 @@\n-a\n+b\n");
        let (code, test) = (change("mm/a.c"), change("tools/testing/selftests/a.c"));
        let aside = format!("Subject: [PATCH 1/2] a\n{}{}{test}", change("MAINTAINERS"), change("Documentation/a.rst"));
        assert_eq!(of_image(&aside), "");
        assert_eq!(of_image(&format!("{aside}{code}{test}")), code);
        assert_eq!(of_image(&format!("Subject: [PATCH 2/2] b\n{code}")), code);
    }
}
