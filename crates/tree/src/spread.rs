//! Pieces of work on several threads, with the results in the order of the pieces.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::{panic, thread};

/// Does each piece of work once, on up to so many threads of which this is one. Who does which shows in nothing.
pub(crate) fn each<W: Send, T: Send>(threads: usize, pieces: Vec<W>, work: impl Fn(W) -> T + Sync) -> Vec<T> {
    let pieces: Vec<Mutex<Option<W>>> = pieces.into_iter().map(|piece| Mutex::new(Some(piece))).collect();
    let next = AtomicUsize::new(0);
    let run = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = pieces.get(at) else { return done };
            let piece = piece.lock().unwrap_or_else(PoisonError::into_inner).take();
            done.push((at, work(piece.expect("each is taken once"))));
        }
    };
    let mut done = thread::scope(|scope| {
        // Where no further thread can be had, this one does it all.
        let others: Vec<_> = (1..threads.min(pieces.len()))
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, run).ok())
            .collect();
        let mut done = run();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stand_in_the_order_of_the_pieces() {
        for threads in 1..5 {
            for count in 0..20 {
                let pieces: Vec<u32> = (0..count).collect();
                let squares: Vec<u32> = pieces.iter().map(|piece| piece * piece).collect();
                assert_eq!(each(threads, pieces, |piece| piece * piece), squares);
            }
        }
    }
}
