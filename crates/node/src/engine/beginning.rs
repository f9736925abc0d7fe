//! Whether the chain of a home may be begun: not where it had a state, and lost it.

use crate::exit::Failure;
use crate::home::Home;
use crate::library::look_into_library;
use crate::own_log::OwnLog;
use keelstone_codec::Height;
use keelstone_ledger::Genesis;
use std::path::PathBuf;

/// What a home beside its state says of the height its chain had: what its own log says last, or the highest of its snapshots.
///
/// # Errors
/// An integrity failure if the log is damaged: what it says then is not known.
pub(crate) fn height_on_record(home: &Home) -> Result<Option<(Height, PathBuf)>, Failure> {
    let own = OwnLog::of(home).last_height()?.map(|height| (height, home.own_log()));
    let snapshot = highest_snapshot(home)?.map(|height| (height, home.snapshots()));
    Ok(snapshot.into_iter().chain(own).max_by_key(|(height, _)| *height))
}

fn highest_snapshot(home: &Home) -> Result<Option<Height>, Failure> {
    let snapshots = look_into_library(home)?.map_or_else(Vec::new, |(library, _)| library.list());
    Ok(snapshots.first().map(|info| info.id.height))
}

/// Refuses to begin the chain of a home that had a state, and lost it: a second history of blocks made here would be one that
/// contradicts the first.
// spec: STORE-10
pub(crate) fn refuse_to_forget(home: &Home, genesis: &Genesis) -> Result<(), Failure> {
    let Some(base) = genesis.initial_height.prev().filter(|_| genesis.validators.is_empty()) else { return Ok(()) };
    let data = home.data();
    let said = OwnLog::of(home).last_height()?;
    if let Some(height) = said.filter(|height| *height > base) {
        let (data, place) = (data.display(), home.own_log());
        let message =
            format!("there is no state in {data}, and {} says that there was one of height {height}", place.display());
        let hint = "bring it back, or put one in its place: keelstone recover --to HEIGHT --root ROOT --yes, or keelstone \
                    snapshot restore HEIGHT --yes. To begin the chain anew, move data/ and audit/ away";
        return Err(Failure::integrity(message).hint(hint));
    }
    // One may be from elsewhere: that there was a state here it does not say.
    let Some(height) = highest_snapshot(home)?.filter(|height| *height > base) else { return Ok(()) };
    let (data, place) = (data.display(), home.snapshots());
    let message = format!("there is no state in {data}, and {} has a snapshot of height {height}", place.display());
    let hint = format!(
        "keelstone snapshot restore {height} --yes begins with it. To begin the chain at its genesis, move data/ away"
    );
    Err(Failure::usage(message).hint(hint))
}
