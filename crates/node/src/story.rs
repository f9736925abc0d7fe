//! The story the demo tells: eight agents meet, ally, post and react, in an order that follows from a fixed seed.

use crate::exit::Failure;
use crate::keyfile::KeyDir;
use keelstone_codec::{
    BoundedSet, ChainId, Decode as _, Fixed, Height, StateHash, Tag, TaggedHasher, Text, splitmix64,
};
use keelstone_execution::{Bundle, Function, Mode, Operation, PublicKey};
use keelstone_ledger::modules::{agents, memes, social};
use keelstone_ledger::{Committed, SecretKey, SignedTransaction, Transaction, Verdict};
use std::collections::{BTreeMap, BTreeSet};

/// Who plays.
const NAMES: [&str; 8] = ["Ada", "Bram", "Cleo", "Dov", "Edda", "Femi", "Gita", "Hugo"];

/// What they found.
const ALLIANCES: [(&str, &str); 6] = [
    ("The Quiet Harbour", "to keep what was promised"),
    ("Second Breakfast", "to meet before noon"),
    ("Night Gardeners", "to water what grows in the dark"),
    ("The Long Count", "to remember every block"),
    ("Paper Boats", "to send small things far"),
    ("Friends of the Root", "to agree on one hash"),
];

/// What they say.
const MEMES: [&str; 10] = [
    "one does not simply rewrite a block",
    "my other state is a Merkle tree",
    "there are two hard things: names, and the other one",
    "trust me, said nobody with a proof",
    "I was in this alliance before it had a root",
    "expected: cake. actual: biscuit.",
    "absence, too, can be proven",
    "keep calm and fsync",
    "it works on every machine",
    "genesis was a good year",
];

/// Who plays, with their keys.
pub(crate) struct Cast(Vec<SecretKey>);

impl Cast {
    /// Makes a key for everybody and keeps it, so that people can go on with the story.
    pub(crate) fn gather(keys: &KeyDir) -> Result<Self, Failure> {
        let mut cast = Vec::new();
        for name in NAMES {
            let key = SecretKey::generate().map_err(|error| Failure::io("no randomness for a new key", &error))?;
            keys.save(&name.to_lowercase(), &key)?;
            cast.push(key);
        }
        Ok(Self(cast))
    }

    /// The first of them, from its key file.
    pub(crate) fn load_first(keys: &KeyDir) -> Result<SecretKey, Failure> {
        keys.load(&NAMES[0].to_lowercase())
    }
}

/// The story so far, and how it goes on.
pub(crate) struct Story {
    cast: Cast,
    chain_id: ChainId,
    nonces: Vec<u64>,
    height: u64,
    random: u64,
    memes: Vec<(memes::MemeId, PublicKey)>,
    reacted: BTreeSet<(u64, usize)>,
    alliances: BTreeMap<social::AllianceId, BTreeSet<usize>>,
    names: BTreeMap<social::AllianceId, String>,
    founded: usize,
    posted: usize,
}

impl Story {
    pub(crate) fn new(cast: Cast, chain_id: &ChainId) -> Self {
        let nonces = vec![0; cast.0.len()];
        Self {
            cast,
            chain_id: chain_id.clone(),
            nonces,
            height: 0,
            random: 42,
            memes: Vec::new(),
            reacted: BTreeSet::new(),
            alliances: BTreeMap::new(),
            names: BTreeMap::new(),
            founded: 0,
            posted: 0,
        }
    }

    /// Somebody who is registered.
    pub(crate) fn someone(&self) -> PublicKey {
        self.cast.0[0].public()
    }

    /// The bundles of the next block: nobody acts twice in one.
    pub(crate) fn next_block(&mut self) -> Vec<SignedTransaction> {
        self.height += 1;
        let newcomer = usize::try_from(self.height - 1).unwrap_or(usize::MAX);
        if newcomer < NAMES.len() {
            let operation = self.registration(newcomer);
            return vec![self.signed(newcomer, vec![operation])];
        }
        let count = 1 + self.below(3);
        let mut actors = BTreeSet::new();
        while actors.len() < count {
            actors.insert(self.below(NAMES.len()));
        }
        actors.into_iter().map(|actor| self.act(actor)).collect()
    }

    /// What somebody does next: a bundle of one to three operations.
    fn act(&mut self, actor: usize) -> SignedTransaction {
        let mut operations = Vec::new();
        let open = self.alliances.iter().find(|(_, members)| !members.contains(&actor)).map(|(id, _)| *id);
        let old = self.alliances.iter().find(|(_, members)| members.contains(&actor) && members.len() > 5);
        let old = old.map(|(id, _)| *id);
        match (self.below(10), open, old) {
            (0, ..) if self.founded < ALLIANCES.len() => {
                let (name, purpose) = ALLIANCES[self.founded];
                self.founded += 1;
                operations.push(Operation::of(&social::ProposeAlliance {
                    name: text(name),
                    purpose: text(purpose),
                    terms: social::Terms::default(),
                    benefits: Text::default(),
                    prize: 0,
                    invited: BoundedSet::default(),
                }));
            }
            (1 | 2, Some(alliance), _) => operations.push(Operation::of(&social::JoinAlliance { alliance })),
            (3, _, Some(alliance)) => operations.push(Operation::of(&social::LeaveAlliance { alliance })),
            (4 | 5, ..) => {
                let other = (actor + 1 + self.below(NAMES.len() - 1)) % NAMES.len();
                operations.push(self.opinion(other));
            }
            _ => {
                let line = MEMES[self.posted % MEMES.len()];
                self.posted += 1;
                operations.push(Operation::of(&memes::Post { text: text(line) }));
            }
        }
        let own = self.cast.0[actor].public();
        let unseen = self.memes.iter().rev().take(12);
        let unseen = unseen.filter(|(meme, author)| *author != own && !self.reacted.contains(&(meme.0, actor)));
        let unseen: Vec<memes::MemeId> = unseen.take(2).map(|(meme, _)| *meme).collect();
        for meme in unseen {
            self.reacted.insert((meme.0, actor));
            let reaction = self.feeling();
            operations.push(Operation::of(&memes::React { meme, reaction }));
        }
        self.signed(actor, operations)
    }

    /// A bundle whose third operation expects the session to stand where it stood before the second.
    pub(crate) fn doomed(&mut self) -> (PublicKey, SignedTransaction) {
        let actor = 0;
        let believed = TaggedHasher::new(Tag::new("demo-belief")).value(&self.height).finish();
        let operations = vec![
            self.opinion(1),
            Operation::of(&memes::Post { text: text("this will never have happened") }),
            self.opinion(2).expecting(StateHash(believed)),
        ];
        self.height += 1;
        let signed = self.signed(actor, operations);
        (self.cast.0[actor].public(), signed)
    }

    /// Takes in what a block came to: who made which alliance and meme.
    pub(crate) fn learn(&mut self, committed: &Committed) {
        for (transaction, receipt) in committed.block.transactions.iter().zip(&committed.receipts) {
            let Verdict::Succeeded { operations, .. } = &receipt.verdict else { continue };
            let sender = transaction.transaction.sender;
            let Some(actor) = self.cast.0.iter().position(|key| key.public() == sender) else { continue };
            for (operation, outcome) in transaction.transaction.bundle.operations().iter().zip(operations) {
                if outcome.function == memes::Post::hash()
                    && let Ok(meme) = memes::MemeId::from_bytes(&outcome.result)
                {
                    self.memes.push((meme, sender));
                } else if outcome.function == social::ProposeAlliance::hash()
                    && let Ok(alliance) = social::AllianceId::from_bytes(&outcome.result)
                {
                    self.alliances.insert(alliance, [actor].into());
                    if let Ok(form) = social::ProposeAlliance::from_bytes(&operation.args) {
                        self.names.insert(alliance, form.name.to_string());
                    }
                } else if let Ok(join) = social::JoinAlliance::from_bytes(&operation.args)
                    && outcome.function == social::JoinAlliance::hash()
                {
                    self.alliances.entry(join.alliance).or_default().insert(actor);
                } else if let Ok(leave) = social::LeaveAlliance::from_bytes(&operation.args)
                    && outcome.function == social::LeaveAlliance::hash()
                {
                    self.alliances.entry(leave.alliance).or_default().remove(&actor);
                }
            }
        }
    }

    /// What happened first in a block, in a few words; what is rare before what is common.
    pub(crate) fn describe(&self, committed: &Committed) -> String {
        let rank = |transaction: &&Transaction| match transaction.bundle.operations().first() {
            Some(first) if first.function == social::ProposeAlliance::hash() => 0,
            Some(first) if first.function == social::LeaveAlliance::hash() => 1,
            Some(first) if first.function == social::JoinAlliance::hash() => 2,
            Some(first) if first.function == social::SetRelationship::hash() => 3,
            _ => 4,
        };
        let Some(transaction) = committed.block.transactions.iter().map(|signed| &signed.transaction).min_by_key(rank)
        else {
            return "nothing happens".to_owned();
        };
        let actor = self.cast.0.iter().position(|key| key.public() == transaction.sender);
        let name = actor.map_or("somebody", |actor| NAMES[actor]);
        let Some(operation) = transaction.bundle.operations().first() else { return name.to_owned() };
        let (function, args) = (operation.function, &operation.args);
        let named = |id: social::AllianceId| self.names.get(&id).map_or("an alliance", |name| name.as_str());
        if function == agents::Register::hash() {
            format!("{name} arrives")
        } else if let (true, Ok(form)) =
            (function == social::ProposeAlliance::hash(), social::ProposeAlliance::from_bytes(args))
        {
            format!("{name} founds {}", &*form.name)
        } else if let (true, Ok(join)) =
            (function == social::JoinAlliance::hash(), social::JoinAlliance::from_bytes(args))
        {
            format!("{name} joins {}", named(join.alliance))
        } else if let (true, Ok(leave)) =
            (function == social::LeaveAlliance::hash(), social::LeaveAlliance::from_bytes(args))
        {
            format!("{name} leaves {}", named(leave.alliance))
        } else if let (true, Ok(post)) = (function == memes::Post::hash(), memes::Post::from_bytes(args)) {
            format!("{name}: {}", &*post.text)
        } else if let (true, Ok(opinion)) =
            (function == social::SetRelationship::hash(), social::SetRelationship::from_bytes(args))
        {
            let other = self.cast.0.iter().position(|key| agents::AgentId(key.public()) == opinion.other);
            let verb = if opinion.relationship.trust < Fixed::ZERO { "doubts" } else { "trusts" };
            format!("{name} {verb} {}", other.map_or("somebody", |other| NAMES[other]))
        } else {
            format!("{name} reacts")
        }
    }

    fn registration(&mut self, actor: usize) -> Operation {
        let mut trait_of = || Fixed::from_micros(i64::try_from(self.below(1001)).unwrap_or_default() * 1000);
        let personality = agents::Personality {
            openness: trait_of(),
            conscientiousness: trait_of(),
            extraversion: trait_of(),
            agreeableness: trait_of(),
            neuroticism: trait_of(),
        };
        let traits = BoundedSet::new([text("curious")]).expect("one trait is within the bound");
        Operation::of(&agents::Register { name: text(NAMES[actor]), personality, traits })
    }

    fn opinion(&mut self, of: usize) -> Operation {
        let relationship = social::Relationship { trust: self.feeling(), sentiment: self.feeling() };
        Operation::of(&social::SetRelationship { other: agents::AgentId(self.cast.0[of].public()), relationship })
    }

    /// From -1 to 1 in hundredths.
    fn feeling(&mut self) -> Fixed {
        Fixed::from_micros((i64::try_from(self.below(201)).unwrap_or_default() - 100) * 10_000)
    }

    fn signed(&mut self, actor: usize, operations: Vec<Operation>) -> SignedTransaction {
        let nonce = self.nonces[actor];
        self.nonces[actor] += 1;
        signed(&self.chain_id, &self.cast.0[actor], nonce, self.height, operations)
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(splitmix64(&mut self.random) % (end as u64)).unwrap_or_default()
    }
}

/// The first bundle of a sender under load: it arrives as an agent.
pub(crate) fn arrival(chain_id: &ChainId, sender: &SecretKey, height: u64) -> SignedTransaction {
    let half = Fixed::from_micros(500_000);
    let personality = agents::Personality {
        openness: half,
        conscientiousness: half,
        extraversion: half,
        agreeableness: half,
        neuroticism: half,
    };
    let name = format!("agent {}", &sender.public().to_string()[..8]);
    let register = agents::Register { name: text(&name), personality, traits: BoundedSet::default() };
    signed(chain_id, sender, 0, height, vec![Operation::of(&register)])
}

/// The next bundle of the process that is killed.
pub(crate) fn worker_bundle(chain_id: &ChainId, writer: &SecretKey, nonce: u64, height: u64) -> SignedTransaction {
    let post = memes::Post { text: text(&format!("still here at {height}")) };
    signed(chain_id, writer, nonce, height, vec![Operation::of(&post)])
}

fn signed(
    chain_id: &ChainId,
    key: &SecretKey,
    nonce: u64,
    height: u64,
    operations: Vec<Operation>,
) -> SignedTransaction {
    let bundle = Bundle::new(Mode::Sync, operations).expect("a bundle of the story has one to three operations");
    let transaction = Transaction {
        chain_id: chain_id.clone(),
        sender: key.public(),
        nonce,
        expiry_height: Height(height + 10),
        session: None,
        bundle,
    };
    transaction.sign(key)
}

fn text<const N: usize>(text: &str) -> Text<N> {
    Text::new(text).expect("the texts of the story fit")
}
