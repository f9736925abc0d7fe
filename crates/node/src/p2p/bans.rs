//! Who is not spoken to any more, over restarts.
//!
//! One small file that is read strictly and written whole. It is a person's to look at and to remove: an id costs nothing
//! to make, so a ban only saves the trouble of finding out the same thing about the same peer again. When there are too
//! many, the oldest is forgotten.
//!
//! Format: `docs/sync.md`, "Bans".

use super::NodeId;
use crate::exit::Failure;
use crate::newfile;
use crate::strict_json;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Most bans that are kept.
const BANS_MAX: usize = 1024;
/// Most bytes of a reason.
const WHY_BYTES_MAX: usize = 256;
/// Most bytes of the file: so many bans with the longest reasons, escaped.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The version of the file format this program writes and reads.
const VERSION: u32 = 1;

/// One peer that is banned.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ban {
    /// Its id.
    peer: String,
    /// What it did.
    why: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    /// The oldest first.
    bans: Vec<Ban>,
}

/// The bans of a home.
#[derive(Debug)]
pub(crate) struct Bans {
    path: PathBuf,
    bans: Vec<Ban>,
    peers: BTreeSet<NodeId>,
}

impl Bans {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// A usage failure that says what is wrong with it.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let none = Self { path: path.to_owned(), bans: Vec::new(), peers: BTreeSet::new() };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(none),
            Err(error) => return Err(Failure::io(path.display(), &error)),
        };
        let mut text = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(|error| Failure::io(path.display(), &error))?;
        let (bans, peers) = parse(&text).map_err(|problem| {
            Failure::usage(format!("{} is no file of bans: {problem}", path.display())).hint("remove it to ban nobody")
        })?;
        Ok(Self { bans, peers, ..none })
    }

    /// Whether a peer is banned.
    pub(crate) fn has(&self, peer: &NodeId) -> bool {
        self.peers.contains(peer)
    }

    /// Who is banned, and why, for whoever wonders that nobody can be reached: the latest, at most so many, and where they stand.
    pub(crate) fn told(&self, count: usize) -> impl Iterator<Item = (&str, String)> {
        let place = self.path.display();
        self.bans.iter().rev().take(count).map(move |ban| (&*ban.peer, format!("it is banned in {place}: {}", ban.why)))
    }

    /// Bans a peer from now on; over restarts once [`write_down`] has written it. False if it was banned already.
    pub(super) fn add(&mut self, peer: NodeId, why: &str) -> bool {
        if !self.peers.insert(peer) {
            return false;
        }
        if self.bans.len() >= BANS_MAX {
            let oldest: NodeId = self.bans.remove(0).peer.parse().expect("nothing but ids is put there");
            self.peers.remove(&oldest);
        }
        let mut room = WHY_BYTES_MAX;
        let fits = |letter: &char| {
            room = room.saturating_sub(letter.len_utf8());
            room > 0
        };
        let why = why.chars().filter(|letter| !letter.is_control()).take_while(fits).collect();
        self.bans.push(Ban { peer: peer.to_string(), why });
        true
    }
}

/// Writes the bans whenever it is told that there are new ones, as they are by then, if the disk lets us; and ends with whoever
/// tells, when all of them are written. Strangers earn bans as fast as they like: nothing waits for a write, and what comes meanwhile
/// is one more.
pub(super) async fn write_down(bans: Arc<Mutex<Bans>>, mut told: watch::Receiver<()>) {
    while told.changed().await.is_ok() {
        let bans = bans.clone();
        let written = tokio::task::spawn_blocking(move || write(&bans)).await;
        if let Err(error) = written.unwrap_or_else(|error| Err(io::Error::other(error))) {
            tracing::warn!(%error, "the last bans could not be written: they end when this node does");
        }
    }
}

fn write(bans: &Mutex<Bans>) -> io::Result<()> {
    let (path, bans) = {
        let bans = bans.lock().unwrap_or_else(PoisonError::into_inner);
        (bans.path.clone(), bans.bans.clone())
    };
    let text = serde_json::to_string_pretty(&Text { version: VERSION, bans })?;
    newfile::replace(&path, (text + "\n").as_bytes())
}

fn parse(text: &[u8]) -> Result<(Vec<Ban>, BTreeSet<NodeId>), String> {
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("longer than {FILE_BYTES_MAX} bytes"));
    }
    let Text { version, bans } = strict_json::parse(text).map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!("version {version}, this program knows {VERSION}"));
    }
    if bans.len() > BANS_MAX {
        return Err(format!("{} bans, at most {BANS_MAX}", bans.len()));
    }
    let mut peers = BTreeSet::new();
    for Ban { peer, why } in &bans {
        let id: NodeId = peer.parse().map_err(|_| format!("{peer:?} is no id of a peer"))?;
        if !peers.insert(id) || why.len() > WHY_BYTES_MAX {
            return Err(format!("{peer} stands there twice, or for too long a reason"));
        }
    }
    Ok((bans, peers))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes the bans, and reads what was written.
    fn reopened(bans: Bans) -> Bans {
        let path = bans.path.clone();
        write(&Mutex::new(bans)).expect("written");
        Bans::open(&path).expect("as written")
    }

    #[test]
    fn a_ban_outlives_a_restart_and_the_oldest_gives_way() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let first = NodeId::random();
        let mut bans = Bans::open(&home.path().join("bans.json")).expect("none yet");
        assert!(bans.add(first, "lied\u{7}"));
        assert!(!bans.add(first, "lied again"));
        let mut bans = reopened(bans);
        let told: Vec<_> = bans.told(8).collect();
        assert!(matches!(&told[..], [(peer, why)] if *peer == first.to_string() && why.ends_with("bans.json: lied")));
        assert!(bans.has(&first) && bans.bans.len() == 1 && bans.bans[0].why == "lied");
        // Whether or not the disk lets us write, the list is bounded.
        for _ in 0..BANS_MAX {
            assert!(bans.add(NodeId::random(), "lied"));
        }
        assert!(!bans.has(&first) && bans.peers.len() == BANS_MAX && bans.bans.len() == BANS_MAX);
        assert_eq!(reopened(bans).peers.len(), BANS_MAX);
    }

    /// Y-04: whoever earns bans makes the disk work, and nobody else wait: neither the task of the connections, nor who looks
    /// whether somebody is banned. What could not be written when it was told is with the next.
    #[test]
    #[cfg(target_os = "linux")]
    fn y04_nobody_waits_for_a_ban_to_be_written() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        use std::time::Duration;
        let home = tempfile::tempdir().expect("a temporary directory");
        let (path, fresh) = (home.path().join("bans.json"), home.path().join("bans.new"));
        // Whoever opens this to write waits until somebody reads.
        mknodat(CWD, &fresh, FileType::Fifo, Mode::RWXU, 0).expect("made");
        let bans = Arc::new(Mutex::new(Bans::open(&path).expect("none yet")));
        let peers = [(); 3].map(|()| NodeId::random());
        let add = |peer| assert!(bans.try_lock().expect("nobody holds them").add(peer, "lied"));
        // Of one thread: what waits there keeps all from going on.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (tell, told) = watch::channel(());
            let writing = tokio::spawn(write_down(bans.clone(), told));
            for peer in &peers[..2] {
                add(*peer);
                tell.send_replace(());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let slow = home.path().join("slow");
            std::fs::rename(&fresh, &slow).expect("there");
            let reading = std::thread::spawn(|| std::fs::read(slow));
            add(peers[2]);
            tell.send_replace(());
            drop(tell);
            writing.await.expect("it ends");
            assert!(reading.join().expect("it ends").is_ok());
            let kept = Bans::open(&path).expect("as written");
            assert!(peers.iter().all(|peer| kept.has(peer)), "{kept:?}");
        });
    }

    /// What a peer did is told with its end, as far as the file has room for it.
    #[test]
    fn a_reason_is_kept_up_to_its_limit() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let mut bans = Bans::open(&home.path().join("bans.json")).expect("none yet");
        let whys = ["x".repeat(200), "x".repeat(1_000), "\u{e4}".repeat(1_000)];
        for why in &whys {
            assert!(bans.add(NodeId::random(), why));
        }
        let kept: Vec<usize> = reopened(bans).bans.iter().map(|ban| ban.why.len()).collect();
        assert!(kept[0] == 200 && kept[1..].iter().all(|bytes| (250..=WHY_BYTES_MAX).contains(bytes)), "{kept:?}");
    }

    #[test]
    fn a_file_of_bans_is_read_strictly() {
        let id = NodeId::random();
        let ban = format!(r#"{{"peer":"{id}","why":"lied"}}"#);
        assert!(parse(format!(r#"{{"version":1,"bans":[{ban}]}}"#).as_bytes()).is_ok());
        for text in [
            String::new(),
            format!(r#"{{"version":2,"bans":[{ban}]}}"#),
            format!(r#"{{"version":1,"bans":[{ban},{ban}]}}"#),
            format!(r#"{{"version":1,"bans":[{ban}],"more":1}}"#),
            r#"{"version":1,"bans":[{"peer":"x","why":""}]}"#.to_owned(),
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        let of = |count: usize, why: usize| {
            let why = "y".repeat(why);
            let bans = (0..count).map(|_| Ban { peer: NodeId::random().to_string(), why: why.clone() }).collect();
            parse(&serde_json::to_vec(&Text { version: VERSION, bans }).expect("text")).map(|(bans, _)| bans.len())
        };
        assert_eq!(of(BANS_MAX, WHY_BYTES_MAX), Ok(BANS_MAX));
        assert!(of(BANS_MAX + 1, 0).is_err_and(|why| why.contains("1025 bans")));
        assert!(of(1, WHY_BYTES_MAX + 1).is_err_and(|why| why.contains("too long")));
        let long = vec![b' '; usize::try_from(FILE_BYTES_MAX).expect("it fits") + 1];
        assert!(parse(&long).is_err_and(|why| why.contains("longer than")));
    }
}
