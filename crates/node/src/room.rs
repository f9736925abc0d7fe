//! Whether a disk has room for a state, asked before anything of it is written.

use keelstone_store::files::{Directory, Files as _};
use keelstone_sync::library::LibraryError;
use keelstone_sync::peers::Version;
use keelstone_tree::Totals;

/// The least and the most bytes of one segment of a store, whose room is taken when it is made.
const SEGMENT_BYTES: (u64, u64) = (4 << 20, 64 << 20);
/// The log of a store that begins, with the segment that is made ahead of time, and a database of blocks with few of them.
const BESIDE_BYTES: u64 = 2 * SEGMENT_BYTES.0 + (4 << 20);

/// About what a state takes on a disk: values with keys, and as much of the tree as an entry takes, in segments; and what is made
/// beside it.
pub(crate) fn of(state: Totals) -> u64 {
    let tree = state.count.saturating_mul(128);
    segments(state.bytes).saturating_add(segments(tree)).saturating_add(BESIDE_BYTES)
}

/// The room of the segments of a store that is built, each twice as large as the one before, in which so much lies.
// spec: STORE-18
fn segments(bytes: u64) -> u64 {
    let (mut room, mut next) = (0, SEGMENT_BYTES.0);
    while next < SEGMENT_BYTES.1 && room < bytes {
        room += next;
        next *= 2;
    }
    let rest = bytes.saturating_sub(room);
    rest.checked_next_multiple_of(SEGMENT_BYTES.1).unwrap_or(u64::MAX).saturating_add(room)
}

/// About what a state takes on a disk that has some of it staged: the rest is staged too, and all of it built beside.
pub(crate) fn of_the_rest(state: Totals, staged: Totals) -> u64 {
    of(state).saturating_add(state.bytes.saturating_sub(staged.bytes))
}

/// Refuses what would fill the disk but for so many percent of it.
///
/// # Errors
/// [`LibraryError::NoRoom`]; [`LibraryError::Io`] if the disk does not say.
pub(crate) fn check(directory: &Directory, needed: u64, reserve_percent: u64) -> Result<(), LibraryError> {
    let asked = directory.room();
    let file = || directory.path().display().to_string();
    let room = asked.map_err(|source| LibraryError::Io { doing: "look for room in", file: file(), source })?;
    let reserve = room.total_bytes / 100 * reserve_percent;
    match room.free_bytes.checked_sub(reserve).is_some_and(|usable| needed <= usable) {
        true => Ok(()),
        false => Err(LibraryError::NoRoom { needed, reserve, free: room.free_bytes }),
    }
}

/// Refuses each version that the disk has no room for, and looks once at each that it has room for.
pub(crate) struct PerVersion<'a> {
    directory: &'a Directory,
    reserve_percent: u64,
    has_room: Option<Version>,
}

impl<'a> PerVersion<'a> {
    pub(crate) fn new(directory: &'a Directory, reserve_percent: u64) -> Self {
        Self { directory, reserve_percent, has_room: None }
    }

    /// Refuses a version for which there is no room, unless there was when it was looked at.
    ///
    /// # Errors
    /// As [`check`].
    pub(crate) fn check(&mut self, version: Version, needed: u64) -> Result<(), LibraryError> {
        if self.has_room != Some(version) {
            check(self.directory, needed, self.reserve_percent)?;
            self.has_room = Some(version);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_codec::{Hash, Height, Root};
    use keelstone_sync::recovery::Failed;

    /// What is built takes the room of whole segments.
    #[test]
    fn room_is_that_of_whole_segments() {
        const MIB: u64 = 1 << 20;
        for (bytes, room) in [(0, 0), (1, 4), (4 * MIB, 4), (4 * MIB + 1, 12), (60 * MIB, 60), (60 * MIB + 1, 124)] {
            assert_eq!(segments(bytes), room * MIB, "{bytes}");
        }
        assert_eq!(segments(u64::MAX), u64::MAX);
        assert_eq!(of(Totals { count: 12_028, bytes: 6_000_000 }), (12 + 4 + 12) * MIB);
    }

    /// spec: RECOVER-8. What is refused says how much it is and how much there is.
    #[test]
    fn what_is_larger_than_the_disk_is_refused_with_both_numbers() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = Directory::new(place.path()).expect("it is there");
        check(&directory, 0, 0).expect("nothing has room");
        let refused = check(&directory, u64::MAX, 0).expect_err("nobody has that much");
        let Failed::NoRoom { needed, free } = Failed::from(refused) else { panic!("it is a lack of room") };
        assert!(needed == u64::MAX && free < needed);
        let refused = check(&directory, 0, 101).expect_err("more than all is to stay free");
        assert!(matches!(Failed::from(refused), Failed::NoRoom { needed: 0, free: 0 }));
    }

    /// That there was room for one version says nothing about the next, which may be larger; and what had room is not asked
    /// about again while it fills the disk itself.
    #[test]
    fn room_is_asked_for_once_for_each_version() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = Directory::new(place.path()).expect("it is there");
        let version = |height| Version { height: Height(height), root: Root(Hash([7; 32])) };
        let mut room = PerVersion::new(&directory, 0);
        room.check(version(4), 0).expect("nothing has room");
        room.check(version(4), u64::MAX).expect("it was looked at");
        for _ in 0..2 {
            assert!(matches!(room.check(version(5), u64::MAX), Err(LibraryError::NoRoom { .. })));
        }
    }
}
