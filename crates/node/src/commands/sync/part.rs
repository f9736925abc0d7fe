//! Taking one namespace, or one prefix of its keys, alone: into a file with the proof that it is all of it, as
//! `keelstone snapshot extract` writes one. The home stays as it is.

use super::{Shown, Sync, Word};
use crate::commands::snapshot::extract::{self, Of};
use crate::exit::{Exit, Failure};
use crate::library::snapshot_params;
use crate::out::{Ink, bytes, grouped};
use crate::p2p::{Joining, Sources, joiner_settings, seed};
use keelstone_store::files::Directory;
use keelstone_sync::library::EXTRACT_BYTES_MAX;
use keelstone_sync::peers::{EntriesError, Event, Joiner, Version};
use keelstone_sync::snapshot::PartOf;
use keelstone_tree::Hasher;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Runtime;

/// Bytes of the chunks that hold the largest part there can be: at both ends they may hold other entries too.
const CHUNKS_BYTES_MAX: u64 = EXTRACT_BYTES_MAX + 2 * (10 << 20);

impl Sync<'_> {
    /// Takes a part, and writes it into a file that does not exist yet. What is fetched waits beside it, and is used again
    /// after a crash.
    // spec: PEER-20
    pub(super) fn take_part<H: Hasher>(
        &self,
        runtime: &Runtime,
        sources: &Sources,
        word: &Word,
        (part, file): (&PartOf, &Path),
    ) -> Result<Exit, Failure> {
        if file.exists() {
            return Err(Failure::usage(format!("{} is there already", file.display())));
        }
        let target = self.target(runtime, sources, word)?;
        let staging = staging(file);
        let directory = Directory::new(&staging).map_err(|error| Failure::io(staging.display(), &error))?;
        let mut joining = Joining::new(runtime.handle(), sources.clone());
        let (params, settings) = (snapshot_params(&self.genesis), joiner_settings(&self.config.p2p));
        let opened = Joiner::<H>::open(Arc::new(directory), params, settings, target.version, joining.now(), seed()?);
        let opened = opened.map_err(|error| Failure::io("the staging directory failed", &error))?;
        let mut joiner = opened.only(part.clone());
        let mut shown = Shown::new(self.context.out, self.options.progress);
        let newer = word.newer();
        let (version, taken) = loop {
            let version = joining.fetch(&mut joiner, newer.as_ref(), None, &mut |progress, version| {
                // Known before the first chunk.
                progress.total.map_or(Ok(()), |total| check_size(part, total.bytes))?;
                shown.show(progress, version);
                Ok(())
            })?;
            shown.show(&joiner.progress(joining.now()), version);
            match joiner.part() {
                Ok(taken) => break (version, taken),
                // It is fetched again.
                Err(EntriesError::Incomplete { .. }) => {}
                Err(EntriesError::Ended(ended)) => return Err(ended.into()),
                Err(EntriesError::Taker(error)) => return Err(extract::failed(error)),
            }
        };
        shown.done();
        let progress = joiner.progress(joining.now());
        let Version { height, root } = version;
        let of = Of { chain_id: &self.genesis.chain_id, height, root, hasher: H::KIND };
        extract::write(file, &extract::file(&of, part, &taken.entries, &taken.proof))?;
        drop(joiner.step(joining.now(), Event::Built));
        // It has served: what cannot be removed is in nobody's way.
        let _ = std::fs::remove_dir_all(&staging);

        let out = self.context.out;
        out.say(out.ink(Ink::Good, "✓ these are all the entries, and the proof says so"));
        out.row("entries", grouped(taken.entries.len() as u64));
        out.row("received", bytes(progress.received_bytes));
        out.row("height", grouped(height.0));
        out.row("root", root);
        out.row("written", file.display());
        let (signer, header) = self.say_by(&target, height);
        out.emit(&json!({
            "file": file, "entries": taken.entries.len(), "proof_bytes": taken.proof.len(),
            "units_read": taken.units_read, "height": height, "root": root,
            "received_bytes": progress.received_bytes, "certified_by": signer, "certified_by_header": header,
        }));
        Ok(Exit::Ok)
    }
}

/// Refuses a part that is too large by what the chunks hold that it is in.
fn check_size(part: &PartOf, found: u64) -> Result<(), Failure> {
    if found <= CHUNKS_BYTES_MAX {
        return Ok(());
    }
    let message = format!("{part} is in chunks of {}; a part has at most {}", bytes(found), bytes(EXTRACT_BYTES_MAX));
    Err(Failure::usage(message).hint("ask for longer prefixes, one by one"))
}

/// Where parts wait: beside the file.
fn staging(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".staging");
    file.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_codec::Namespace;

    /// spec: PEER-20. What is too large whatever else is in its chunks is refused before one of them is asked for.
    #[test]
    fn a_part_that_is_too_large_is_refused_by_its_chunks() {
        let part = PartOf { namespace: Namespace::new("bulk").expect("a name"), prefix: b"a".to_vec() };
        assert!(check_size(&part, CHUNKS_BYTES_MAX).is_ok());
        let failure = check_size(&part, CHUNKS_BYTES_MAX + 1).expect_err("it is too large");
        assert!(failure.exit == Exit::Usage && failure.message.starts_with("bulk/a is in chunks"), "{failure}");
    }
}
