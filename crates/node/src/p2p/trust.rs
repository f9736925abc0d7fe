//! What makes a version the one to fetch, on a chain without another engine: the word of a producer.
//!
//! Peers only carry that word. One that carries none, an old one, or somebody else's is of no use for this, and not to be
//! blamed: it may be on the way itself.
//!
//! Rules: `spec/snapshot.md`, SNAP-12.

use super::Certifies;
use crate::clock::now;
use crate::exit::Failure;
use keelstone_codec::{ChainId, Decode as _, Hash, Height, Root, Timestamp};
use keelstone_ledger::{Attestation, Genesis, PublicKey, SignatureError, SignedAttestation};
use keelstone_sync::peers::{Request, Response, Version};

/// How far the clock of a producer may be ahead of ours, in milliseconds.
const AHEAD_MS_MAX: u64 = 60_000;

/// Whom to believe.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    pub(crate) chain_id: ChainId,
    pub(crate) genesis_hash: Hash,
    /// The keys whose word counts.
    pub(crate) keys: Vec<PublicKey>,
    /// How long it counts, in milliseconds.
    pub(crate) period_ms: u64,
}

/// Why a version is not believed in. Nothing was fetched yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Distrust {
    /// What came is no attestation.
    #[error("it is no attestation")]
    NotOne,
    /// It is of another chain.
    #[error("it is of chain {found}, not of {expected}")]
    OtherChain { found: String, expected: String },
    /// Nobody whose word counts has signed it.
    #[error("it is signed by {signer}, whom nobody told this node to trust")]
    Stranger { signer: PublicKey },
    /// It is not signed by whom it says.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// It was true long ago.
    #[error("stale: height {height} was certified {age_s} s ago, and only what is at most {limit_s} s old counts")]
    Stale { height: Height, age_s: u64, limit_s: u64 },
    /// One of the clocks is wrong.
    #[error("it was certified {ahead_s} s from now: look at this machine's clock")]
    Ahead { ahead_s: u64 },
    /// Keys whose word counts, or one of them, have said two things. Nothing may be built on either.
    #[error("forked: of height {height}, {} certified root {}, and {} certified root {}", .said[0].0, .said[0].1, .said[1].0, .said[1].1)]
    Forked { height: Height, said: Box<[(PublicKey, Root); 2]> },
}

impl Trust {
    /// In the producers that the genesis names, and in keys that were given beside them.
    ///
    /// # Errors
    /// A usage failure if the genesis is none.
    pub(crate) fn of(genesis: &Genesis, given: &[PublicKey], period_ms: u64) -> Result<Self, Failure> {
        let first = genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?;
        let keys = genesis.producers.iter().chain(given).copied().collect();
        Ok(Self { chain_id: genesis.chain_id.clone(), genesis_hash: first.hash, keys, period_ms })
    }

    /// Whether an attestation is of this chain, whoever made it.
    pub(crate) fn is_of_chain(&self, Attestation { chain_id, genesis_hash, .. }: &Attestation) -> bool {
        (chain_id, genesis_hash) == (&self.chain_id, &self.genesis_hash)
    }

    /// Reads an attestation and says of which version it is, if it counts.
    ///
    /// # Errors
    /// [`Distrust`].
    // spec: SNAP-12
    pub(crate) fn judge(&self, certificate: &[u8], now: Timestamp) -> Result<SignedAttestation, Distrust> {
        let signed = SignedAttestation::from_bytes(certificate).map_err(|_| Distrust::NotOne)?;
        let Attestation { chain_id, genesis_hash, height, said_at, .. } = &signed.attestation;
        if !self.is_of_chain(&signed.attestation) {
            let text = |chain: &ChainId, genesis: &Hash| format!("{chain} with genesis {genesis}");
            let (found, expected) = (text(chain_id, genesis_hash), text(&self.chain_id, &self.genesis_hash));
            return Err(Distrust::OtherChain { found, expected });
        }
        if !self.keys.contains(&signed.signer) {
            return Err(Distrust::Stranger { signer: signed.signer });
        }
        signed.verify()?;
        if said_at.0 > now.0.saturating_add(AHEAD_MS_MAX) {
            return Err(Distrust::Ahead { ahead_s: (said_at.0 - now.0) / 1000 });
        }
        let age_ms = now.0.saturating_sub(said_at.0);
        if age_ms > self.period_ms {
            let (age_s, limit_s) = (age_ms / 1000, self.period_ms / 1000);
            return Err(Distrust::Stale { height: *height, age_s, limit_s });
        }
        Ok(signed)
    }

    /// The newest of what was certified, if no two contradict each other.
    ///
    /// # Errors
    /// [`Distrust::Forked`].
    pub(crate) fn newest(said: &[SignedAttestation]) -> Result<Option<SignedAttestation>, Distrust> {
        for (index, one) in said.iter().enumerate() {
            let differs = |other: &&SignedAttestation| {
                other.attestation.height == one.attestation.height && other.attestation.root != one.attestation.root
            };
            if let Some(other) = said[index + 1..].iter().find(differs) {
                let height = one.attestation.height;
                let said = [one, other].map(|signed| (signed.signer, signed.attestation.root));
                return Err(Distrust::Forked { height, said: Box::new(said) });
            }
        }
        Ok(said.iter().max_by_key(|signed| (signed.attestation.height, signed.attestation.said_at)).cloned())
    }
}

impl Certifies for Trust {
    fn question(&self) -> Request {
        Request::GetCertificate
    }

    fn judge(&self, answer: &Response) -> Option<Version> {
        let Response::Certificate(certificate) = answer else { return None };
        Self::judge(self, certificate, now()).ok().map(|signed| version(&signed))
    }
}

/// The version that an attestation is of.
pub(crate) fn version(signed: &SignedAttestation) -> Version {
    Version { height: signed.attestation.height, root: signed.attestation.root }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_codec::Encode as _;
    use keelstone_ledger::SecretKey;

    fn said(height: u64, root: u8, said_at: u64) -> Attestation {
        Attestation {
            chain_id: ChainId::new("test-1").expect("a name"),
            genesis_hash: Hash([1; 32]),
            height: Height(height),
            root: Root(Hash([root; 32])),
            said_at: Timestamp(said_at),
        }
    }

    /// spec: SNAP-12. Stale, foreign, unsigned and contradictory words are refused, each with its reason.
    #[test]
    fn only_the_fresh_word_of_a_trusted_key_counts() {
        let (key, stranger) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
        let honest = said(7, 9, 1_000_000);
        let trust = Trust {
            chain_id: honest.chain_id.clone(),
            genesis_hash: honest.genesis_hash,
            keys: vec![key.public()],
            period_ms: 10_000,
        };
        let judge = |signed: &SignedAttestation, now| trust.judge(&signed.to_bytes(), Timestamp(now));
        let signed = honest.clone().sign(&key);
        assert_eq!(judge(&signed, 1_000_500), Ok(signed.clone()));
        assert!(matches!(judge(&signed, 1_020_000), Err(Distrust::Stale { age_s: 20, limit_s: 10, .. })));
        assert!(matches!(judge(&signed, 0), Err(Distrust::Ahead { ahead_s: 1000 })));
        let foreign = Attestation { genesis_hash: Hash([5; 32]), ..honest.clone() }.sign(&key);
        assert!(matches!(judge(&foreign, 1_000_000), Err(Distrust::OtherChain { .. })));
        assert!(matches!(judge(&honest.clone().sign(&stranger), 1_000_000), Err(Distrust::Stranger { .. })));
        let forged = SignedAttestation { attestation: said(8, 9, 1_000_000), ..signed.clone() };
        assert!(matches!(judge(&forged, 1_000_000), Err(Distrust::Signature(_))));
        assert_eq!(trust.judge(b"x", Timestamp(0)), Err(Distrust::NotOne));

        let later = said(8, 3, 1_000_000).sign(&key);
        assert_eq!(Trust::newest(&[later.clone(), signed.clone()]), Ok(Some(later)));
        let other = said(7, 4, 1_000_001).sign(&key);
        assert!(matches!(Trust::newest(&[signed.clone(), other]), Err(Distrust::Forked { .. })));
        // Each is named with what it said: it need not be one key that said both.
        let other = said(7, 4, 1_000_001).sign(&stranger);
        let forked = Distrust::Forked {
            height: Height(7),
            said: Box::new([(key.public(), Root(Hash([9; 32]))), (stranger.public(), Root(Hash([4; 32])))]),
        };
        assert_eq!(Trust::newest(&[signed, other]), Err(forked));
        assert_eq!(Trust::newest(&[]), Ok(None));
    }
}
