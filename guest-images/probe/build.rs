//! Compiles the guest (`guest/`, no operating system under it) with the same compiler as the
//! rest, so that every crate that depends on this one holds its bytes in [`IMAGE`].
//!
//! Not a Cargo target of its own: it needs its own linker script, code model and panic strategy
//! whatever profile the workspace is built with, and Cargo gives no crate the path of another
//! crate's binary.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn main() {
    let out = env::var("OUT_DIR").expect("Cargo sets OUT_DIR");
    let out = Path::new(&out).join("probe.elf");
    println!("cargo:rerun-if-changed=guest");
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rustc-env=PROBE_IMAGE={}", out.display());
    let target = env::var("TARGET").expect("Cargo sets TARGET");
    if !(target.starts_with("x86_64-") && target.contains("linux")) {
        fs::write(&out, []).expect("an empty image can be written");
        println!("cargo:warning=the probe guest is for x86_64 Linux hosts; its image is empty");
        return;
    }
    let status = Command::new(env::var("RUSTC").expect("Cargo sets RUSTC"))
        .args([
            "--crate-name=probe_guest",
            "--crate-type=bin",
            "--edition=2024",
        ])
        .args([
            "--target",
            &target,
            "-Dwarnings",
            "-Copt-level=3",
            "-Cpanic=abort",
        ])
        .args([
            "-Crelocation-model=static",
            "-Ccodegen-units=1",
            "-Cstrip=symbols",
        ])
        .args([
            "-Ctarget-feature=+crt-static",
            "-Clink-arg=-nostdlib",
            "-Clink-arg=-static",
        ])
        .args([
            "-Clink-arg=-no-pie",
            "-Clink-arg=-Wl,--build-id=none,--gc-sections",
        ])
        .args(["-Clink-arg=-Wl,-T,guest/link.ld", "guest/main.rs", "-o"])
        .arg(&out)
        .status()
        .expect("rustc can be started");
    assert!(
        status.success(),
        "the probe guest does not compile: {status}"
    );
}
