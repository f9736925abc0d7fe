//! Pieces of work on several threads, with the results in the order of the pieces.

use rayon_core::{ThreadPool, ThreadPoolBuilder};
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};

/// The threads that help whoever applies a diff. They are started when the first diff is large enough, and wait in between.
pub(crate) struct Hands {
    threads: NonZeroUsize,
    /// None if there are to be none, or if the system gives none: then one thread does it all.
    others: OnceLock<Option<ThreadPool>>,
}

impl Hands {
    /// So many threads, of which the one that asks is one.
    pub(crate) fn new(threads: NonZeroUsize) -> Self {
        Self { threads, others: OnceLock::new() }
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads.get()
    }

    /// Does each piece of work once; who does which shows in nothing.
    pub(crate) fn each<W: Send, T: Send>(&self, pieces: Vec<W>, work: impl Fn(W) -> T + Sync) -> Vec<T> {
        self.relay(pieces, |piece| ((), piece), |_| {}, work, || {})
    }

    /// Does each piece of work once, in two steps. `first` says what `between` wants to hear of all pieces; that runs here,
    /// while others go on with the second step. Who finds nothing more to do ends with `last`.
    pub(crate) fn relay<W: Send, N: Send, S: Send, T: Send>(
        &self,
        pieces: Vec<W>,
        first: impl Fn(W) -> (N, S) + Sync,
        between: impl FnOnce(Vec<N>),
        second: impl Fn(S) -> T + Sync,
        last: impl Fn() + Sync,
    ) -> Vec<T> {
        let count = pieces.len();
        let pieces = Mutex::new(pieces.into_iter().enumerate());
        let (begun, done) = (Mutex::new(Vec::with_capacity(count)), Mutex::new(Vec::with_capacity(count)));
        let begin = |news: mpsc::Sender<(usize, N)>| {
            while let Some((at, piece)) = next(&pieces, Iterator::next) {
                let (told, rest) = first(piece);
                lock(&begun).push((at, rest));
                // Nobody listens any more only where something panicked, which is heard of in the end.
                let _ = news.send((at, told));
            }
        };
        let end = || {
            while let Some((at, rest)) = next(&begun, Vec::pop) {
                let result = second(rest);
                lock(&done).push((at, result));
            }
            last();
        };
        let (news, heard) = mpsc::channel();
        let here = |news| {
            begin(news);
            let told = in_order(heard.iter().take(count).collect());
            // Fewer only where something panicked.
            if told.len() == count {
                between(told);
                end();
            }
        };
        match self.others(count) {
            Some(others) => others.in_place_scope(|scope| {
                for _ in 1..self.threads().min(count) {
                    let news = news.clone();
                    scope.spawn(|_| {
                        begin(news);
                        end();
                    });
                }
                here(news);
            }),
            None => here(news),
        }
        in_order(done.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// The other threads, if there is work for them.
    fn others(&self, pieces: usize) -> Option<&ThreadPool> {
        if pieces < 2 || self.threads() < 2 {
            return None;
        }
        let start = || {
            let named = ThreadPoolBuilder::new().thread_name(|number| format!("tree-{number}"));
            named.num_threads(self.threads() - 1).build().ok()
        };
        self.others.get_or_init(start).as_ref()
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes one of many, and lets go of the lock.
fn next<T, U>(from: &Mutex<T>, take: impl FnOnce(&mut T) -> Option<U>) -> Option<U> {
    take(&mut lock(from))
}

fn in_order<T>(mut numbered: Vec<(usize, T)>) -> Vec<T> {
    numbered.sort_unstable_by_key(|(at, _)| *at);
    numbered.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stand_in_the_order_of_the_pieces() {
        for threads in 1..5 {
            let hands = Hands::new(NonZeroUsize::new(threads).unwrap());
            for count in 0..20 {
                let pieces: Vec<u32> = (0..count).collect();
                let (mut heard, squares) = (Vec::new(), pieces.iter().map(|piece| piece * piece));
                let first = |piece| (piece, piece * piece);
                let found = hands.relay(pieces.clone(), first, |told| heard = told, |square| square + 1, || {});
                assert_eq!(found, squares.map(|square| square + 1).collect::<Vec<u32>>());
                assert_eq!(heard, pieces);
            }
        }
    }

    /// A panic in one piece is one of whoever asked; nobody waits for what does not come.
    #[test]
    fn a_panic_is_handed_on() {
        let hands = Hands::new(NonZeroUsize::new(3).unwrap());
        for step in 0..2 {
            let work = |at, piece| assert_ne!((at, piece), (step, 5), "as wanted");
            let run = || {
                let first = |piece| (work(0, piece), piece);
                hands.relay((0..9).collect(), first, |_| {}, |piece| work(1, piece), || {})
            };
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
        }
    }
}
