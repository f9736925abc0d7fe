//! Programs that are not Rust and that some tests run: CometBFT, built with Go, and Prometheus' `promtool`.
//!
//! Each is installed once, at a pinned version, under `target/tools`, and looked at again only to see that it is that
//! version. Whoever has no Go, or no Debian, still builds and tests everything else, and is told what was left out.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The CometBFT that tests run. The versions that `cargo xtask cometbft` knows besides are in its usage.
pub(crate) const COMETBFT: &str = "0.40.0";
const COMETBFT_MODULE: &str = "github.com/cometbft/cometbft";

/// Where the project builds to.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => directory.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
    }
}

/// A program that is there, or why it is not.
pub(crate) type Found = Result<PathBuf, String>;

/// CometBFT of a version: as installed before, else built with Go.
pub(crate) fn cometbft(version: &str) -> Found {
    let tools = target().join("tools");
    let binary = tools.join(format!("bin/cometbft-{version}"));
    if is_version(&binary, version) {
        return absolute(&binary);
    }
    if output("go", &["version"]).is_none() {
        return Err("there is no Go to build CometBFT with".to_owned());
    }
    println!("installing CometBFT {version}");
    // Built aside: a build that was cut short must not look like one that is whole.
    let aside = absolute(&tools)?.join(format!("cometbft-{version}.new"));
    let module = format!("{COMETBFT_MODULE}/cmd/cometbft@v{version}");
    let built = Command::new("go")
        .args(["install", &module])
        .env("GOBIN", &aside)
        // Without a C compiler, and for the machine this runs on, whatever is set otherwise.
        .env("CGO_ENABLED", "0")
        .env_remove("GOOS")
        .env_remove("GOARCH")
        .stdin(Stdio::null())
        .status();
    if !built.is_ok_and(|status| status.success()) {
        return Err(format!("go install {module} failed"));
    }
    let moved = fs::create_dir_all(tools.join("bin")).and_then(|()| fs::rename(aside.join("cometbft"), &binary));
    moved.map_err(|error| format!("{}: {error}", binary.display()))?;
    // Empty by now; left over it costs nothing.
    let _ = fs::remove_dir(&aside);
    match is_version(&binary, version) {
        true => absolute(&binary),
        false => Err(format!("{} is not CometBFT {version}", binary.display())),
    }
}

/// Whether a binary is CometBFT of this version. What it says of itself is not asked: 0.40.0 says 0.39.0.
fn is_version(binary: &Path, version: &str) -> bool {
    if !binary.exists() {
        return false;
    }
    let shown = binary.to_str().and_then(|binary| output("go", &["version", "-m", binary]));
    // Without Go there is nothing to compare with, and nothing that could have made another one of this name.
    shown.is_none_or(|shown| {
        let mut words = shown.split_whitespace().skip_while(|word| *word != COMETBFT_MODULE);
        words.nth(1) == Some(&format!("v{version}"))
    })
}

/// `promtool`: as installed here or on the machine; on a CI machine taken out of Debian's package.
pub(crate) fn promtool() -> Found {
    let tools = target().join("tools");
    let unpacked = tools.join("prometheus/usr/bin/promtool");
    for candidate in [unpacked.as_path(), Path::new("promtool")] {
        if candidate.to_str().and_then(|candidate| output(candidate, &["--version"])).is_some() {
            return Ok(candidate.to_owned());
        }
    }
    if env::var_os("CI").is_none() {
        return Err("there is no promtool (Debian: apt-get install prometheus)".to_owned());
    }
    println!("installing promtool");
    let aside = tools.join("prometheus.new");
    let failed = |error: std::io::Error| format!("{}: {error}", aside.display());
    let _ = fs::remove_dir_all(&aside);
    fs::create_dir_all(&aside).map_err(failed)?;
    // Downloaded and unpacked, not installed: that needs no root, and starts no server.
    run_in(&aside, "apt-get", &["download", "--quiet", "prometheus"]).or_else(|_| {
        run_in(&aside, "apt-get", &["update", "--quiet"])
            .and_then(|()| run_in(&aside, "apt-get", &["download", "--quiet", "prometheus"]))
    })?;
    let packages = fs::read_dir(&aside).map_err(failed)?.filter_map(Result::ok).map(|entry| entry.path());
    let package = packages.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let package = package.ok_or("apt-get download prometheus left no package")?;
    let package = package.file_name().and_then(|name| name.to_str()).ok_or("the package has no name")?.to_owned();
    run_in(&aside, "dpkg-deb", &["-x", &package, "."])?;
    let _ = fs::remove_dir_all(tools.join("prometheus"));
    fs::rename(&aside, tools.join("prometheus")).map_err(failed)?;
    if unpacked.exists() { Ok(unpacked) } else { Err("Debian's prometheus holds no promtool".to_owned()) }
}

fn run_in(directory: &Path, program: &str, arguments: &[&str]) -> Result<(), String> {
    let status = Command::new(program).args(arguments).current_dir(directory).stdin(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program} {}: {status}", arguments.join(" "))),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// What a program says, if it is there and content.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn absolute(path: &Path) -> Found {
    std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))
}
