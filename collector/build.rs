//! Builds `libreprieve_heap.so` and embeds it: `cargo install` installs programs
//! only, and the two must fit each other.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    // Not all of heap/: fuzzing writes there, and all would be built again.
    for part in ["../heap/cpython", "../heap/preload", "../heap/table", "../Cargo.toml"] {
        println!("cargo:rerun-if-changed={part}");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let cargo = std::env::var_os("CARGO").expect("cargo sets CARGO");
    // Its thread-local storage and its unwinder know one architecture so far.
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        let none = out.join("none.so");
        std::fs::write(&none, "").expect("OUT_DIR is writable");
        println!("cargo:rustc-env=REPRIEVE_HEAP_LIBRARY={}", none.display());
        return;
    }
    let target = out.join("heap");
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--profile", "preload", "--manifest-path", "../heap/preload/Cargo.toml"])
        // A directory of its own: the outer cargo holds the lock of the other.
        .arg("--target-dir")
        .arg(&target)
        // Not clippy: what is embedded must be compiled.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        // Nor with the flags of a fuzzer or of coverage, whose runtime other programs lack.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .status();
    assert!(status.is_ok_and(|s| s.success()), "libreprieve_heap.so could not be built; its errors are above");
    let library = target.join("preload/libreprieve_heap.so");
    println!("cargo:rustc-env=REPRIEVE_HEAP_LIBRARY={}", library.display());
}
