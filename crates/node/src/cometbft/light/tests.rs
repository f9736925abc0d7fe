//! A chain of headers made here, servers on real sockets that give it, and all they can do wrong.

use super::*;
use crate::cometbft::certificate::{header_hash, validators_hash, vote_bytes};
use crate::cometbft::keys::address_of;
use keelstone_codec::Root;
use keelstone_ledger::{SecretKey, Validator};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use tendermint::validator::{Info, Set};
use tendermint_proto::google::protobuf::Timestamp as ProtoTime;
use tendermint_proto::v0_38::types::{BlockId, BlockIdFlag, Commit, CommitSig, Header, PartSetHeader, SignedHeader};
use tendermint_proto::v0_38::version::Consensus;

const CHAIN: &str = "light-test";
/// The time of block 0, in seconds; a block takes one.
const BEGAN: i64 = 1_700_000_000;
/// What a hostile server is given for a read. The honest ones have as long as any.
const SHORT: Duration = Duration::from_millis(150);
const WEEK: Duration = Duration::from_secs(7 * 86_400);

/// Who votes at a height, by the numbers of their keys, and with which power.
type Voters = fn(u64) -> Vec<(u8, u64)>;

fn same(_: u64) -> Vec<(u8, u64)> {
    (1..=4).map(|number| (number, 10)).collect()
}

/// Of four, one goes with each block and another comes.
fn changing(height: u64) -> Vec<(u8, u64)> {
    let first = u8::try_from(height).expect("a short chain");
    (first..first + 4).map(|number| (number, 10)).collect()
}

fn many(_: u64) -> Vec<(u8, u64)> {
    (0..250).map(|number| (number, 10)).collect()
}

/// A validator's key, and the address that comes of it: both cost much where they are not optimized.
fn known(number: u8) -> &'static (SecretKey, [u8; 20]) {
    static KNOWN: OnceLock<Vec<(SecretKey, [u8; 20])>> = OnceLock::new();
    let make = |number| {
        let key = SecretKey::from_seed(&[number; 32]);
        let address = address_of(&key.public());
        (key, address)
    };
    &KNOWN.get_or_init(|| (0..=u8::MAX).map(make).collect())[usize::from(number)]
}

fn now() -> Timestamp {
    Timestamp(u64::try_from(BEGAN).expect("after 1970") * 1_000 + 60_000)
}

fn root(height: u64) -> Root {
    let mut root = [7; 32];
    root[..8].copy_from_slice(&height.to_le_bytes());
    Root(Hash(root))
}

/// The validators in the order of a set.
fn set(voters: &[(u8, u64)]) -> Set {
    let info = |(number, power): &(u8, u64)| {
        let (key, address) = known(*number);
        Info {
            address: tendermint::account::Id::new(*address),
            pub_key: tendermint::PublicKey::from_raw_ed25519(key.public().as_bytes()).expect("a key"),
            power: (*power).try_into().expect("small"),
            name: None,
            proposer_priority: 0.into(),
        }
    };
    Set::without_proposer(voters.iter().map(info).collect())
}

fn hash_of(voters: &[(u8, u64)]) -> Vec<u8> {
    set(voters).hash_with::<step::Sha>().as_bytes().to_vec()
}

/// spec: LEDGER-8. What this crate takes for the hash of who votes is what the light client takes for it, in whatever order they come.
#[test]
fn who_votes_has_the_hash_that_the_light_client_computes() {
    let mut voters = [(5, 10), (1, 10), (4, 7), (2, 1 << 40), (3, 10)];
    let ours = |voters: &[(u8, u64)]| {
        let ours = voters.iter().map(|(number, power)| Validator { key: known(*number).0.public(), power: *power });
        validators_hash(&ours.collect::<Vec<_>>()).to_vec()
    };
    let theirs = hash_of(&voters);
    assert_eq!(ours(&voters), theirs);
    voters.reverse();
    assert_eq!(ours(&voters), theirs);
    voters[0].1 += 1;
    assert_ne!(ours(&voters), theirs);
}

/// The header of a height, not signed. It certifies the root below.
fn header(height: u64, voters: Voters) -> Header {
    let number = i64::try_from(height).expect("small");
    Header {
        version: Some(Consensus { block: 11, app: 1 }),
        chain_id: CHAIN.to_owned(),
        height: number,
        time: Some(ProtoTime { seconds: BEGAN + number, nanos: 5 }),
        last_block_id: Some(id(vec![1; 32])),
        last_commit_hash: vec![2; 32],
        data_hash: vec![3; 32],
        validators_hash: hash_of(&voters(height)),
        next_validators_hash: hash_of(&voters(height + 1)),
        consensus_hash: vec![4; 32],
        app_hash: root(height - 1).0.0.to_vec(),
        last_results_hash: vec![5; 32],
        evidence_hash: vec![6; 32],
        proposer_address: vec![7; 20],
    }
}

fn id(hash: Vec<u8>) -> BlockId {
    BlockId { hash, part_set_header: Some(PartSetHeader { total: 1, hash: vec![8; 32] }) }
}

/// A header with the votes of those who vote at its height.
fn signed(header: Header, voters: &[(u8, u64)]) -> SignedHeader {
    let id = id(header_hash(&header).to_vec());
    let mut commit = Commit { height: header.height, round: 0, block_id: Some(id.clone()), signatures: vec![] };
    for info in set(voters).validators() {
        let all = voters.iter().map(|(number, _)| known(*number));
        let (key, _) = all.into_iter().find(|(_, address)| address == info.address.as_bytes()).expect("one of them");
        let mut vote = CommitSig {
            block_id_flag: BlockIdFlag::Commit.into(),
            validator_address: info.address.as_bytes().to_vec(),
            timestamp: Some(ProtoTime { seconds: BEGAN + header.height + 1, nanos: 0 }),
            signature: vec![],
        };
        vote.signature = key.sign(&vote_bytes(&header.chain_id, &commit, &id, &vote)).0.to_vec();
        commit.signatures.push(vote);
    }
    SignedHeader { header: Some(header), commit: Some(commit) }
}

/// What a server sends when it is asked.
enum Reply {
    /// The result of JSON-RPC.
    Result(Value),
    /// An error of it.
    Error(&'static str),
    /// These bytes behind the head.
    Raw(Vec<u8>),
    /// Nothing at all, and the connection stays.
    Silence,
    /// Bytes of an answer, for ever.
    Endless,
    /// A byte of an answer at a time, for ever.
    Drip,
    /// An answer in pieces, which nobody asked for who speaks HTTP/1.0.
    Pieces(Value),
}

/// What is asked: the path without its parameters, and the height among them.
struct Asked<'a> {
    path: &'a str,
    height: u64,
    page: usize,
}

/// A chain and what a server makes of it.
struct Served {
    voters: Voters,
    tip: AtomicUsize,
    /// How much it grows each time somebody asks for it.
    grows: usize,
    /// Commits that were asked for.
    commits: AtomicUsize,
    /// Changes a header before it is signed.
    forge: fn(&mut Header),
    /// Changes what is sent.
    spoil: fn(&Asked<'_>, Reply) -> Reply,
}

fn honest() -> Served {
    Served {
        voters: same,
        tip: AtomicUsize::new(40),
        grows: 0,
        commits: AtomicUsize::new(0),
        forge: |_| (),
        spoil: |_, reply| reply,
    }
}

impl Served {
    fn signed(&self, height: u64) -> SignedHeader {
        let mut header = header(height, self.voters);
        (self.forge)(&mut header);
        signed(header, &(self.voters)(height))
    }

    fn answer(&self, asked: &Asked<'_>) -> Reply {
        let grows = if asked.path == "/status" { self.grows } else { 0 };
        let tip = u64::try_from(self.tip.fetch_add(grows, Ordering::Relaxed)).expect("small");
        match asked.path {
            "/status" => Reply::Result(json!({
                "node_info": { "network": CHAIN, "id": "", "version": "0.40.0" },
                "sync_info": { "latest_block_height": tip.to_string(), "earliest_block_height": "1", "catching_up": false },
            })),
            "/commit" if asked.height > tip => Reply::Error("height must be less than or equal to the current"),
            "/commit" => {
                self.commits.fetch_add(1, Ordering::Relaxed);
                Reply::Result(json!({ "signed_header": self.signed(asked.height), "canonical": true }))
            }
            "/validators" => {
                let set = set(&(self.voters)(asked.height));
                let page = set.validators().chunks(100).nth(asked.page - 1).unwrap_or_default();
                let one = |info: &Info| {
                    let key = crate::cometbft::base64::base64(&info.pub_key.to_bytes());
                    json!({ "address": info.address.to_string(), "proposer_priority": "0",
                        "pub_key": { "type": "tendermint/PubKeyEd25519", "value": key },
                        "voting_power": info.power.value().to_string() })
                };
                Reply::Result(json!({
                    "block_height": asked.height.to_string(), "count": page.len().to_string(),
                    "validators": page.iter().map(one).collect::<Vec<_>>(),
                    "total": set.validators().len().to_string(),
                }))
            }
            other => panic!("nobody asks for {other}"),
        }
    }

    /// Serves on a port of its own for as long as the process lives, under an id of its own.
    fn serve(self) -> (Rpc, Arc<Self>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let (served, node) = (Arc::new(self), address.clone());
        let own = served.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (own, node) = (own.clone(), node.clone());
                std::thread::spawn(move || own.converse(stream.expect("a client"), &node));
            }
        });
        (Rpc::new(&address).expect("an address"), served)
    }

    fn converse(&self, mut stream: TcpStream, node: &str) {
        let mut request = [0; 4096];
        let got = stream.read(&mut request).expect("a request");
        let line = String::from_utf8_lossy(&request[..got]).into_owned();
        let target = line.split(' ').nth(1).expect("a path");
        let (path, parameters) = target.split_once('?').unwrap_or((target, ""));
        let number = |name: &str| {
            let found = parameters.split('&').find_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('='));
            found.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let page = usize::try_from(number("page")).expect("small");
        let asked = Asked { path, height: number("height"), page };
        let mut reply = (self.spoil)(&asked, self.answer(&asked));
        if let (Reply::Result(result), "/status") = (&mut reply, path)
            && result["node_info"]["id"] == ""
        {
            result["node_info"]["id"] = json!(node);
        }
        let head = "HTTP/1.0 200 OK\r\n\r\n";
        let text = match reply {
            Reply::Result(result) => format!("{head}{}", json!({ "jsonrpc": "2.0", "id": -1, "result": result })),
            Reply::Error(message) => {
                format!("{head}{}", json!({ "error": { "code": -32603, "message": message, "data": "" } }))
            }
            Reply::Raw(bytes) => {
                // Whoever has enough of it goes.
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes));
                return;
            }
            Reply::Pieces(result) => {
                let body = json!({ "result": result }).to_string();
                let pieces = body
                    .as_bytes()
                    .chunks(100)
                    .map(|piece| format!("{:x}\r\n{}\r\n", piece.len(), String::from_utf8_lossy(piece)));
                format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", pieces.collect::<String>())
            }
            Reply::Silence => String::new(),
            Reply::Endless => {
                let _ = stream.write_all(head.as_bytes());
                while stream.write_all(&[b' '; 65_536]).is_ok() {}
                return;
            }
            Reply::Drip => {
                let _ = stream.write_all(head.as_bytes());
                while stream.write_all(b" ").is_ok() {
                    std::thread::sleep(SHORT / 10);
                }
                return;
            }
        };
        if text.is_empty() {
            // Until the client goes.
            let _ = stream.read(&mut request);
        }
        let _ = stream.write_all(text.as_bytes());
    }
}

/// The hash of a header of an honest chain.
fn true_hash(height: u64, voters: Voters) -> Hash {
    Hash(header_hash(&header(height, voters)))
}

fn settings(servers: &[&Rpc], voters: Voters) -> Settings {
    Settings {
        servers: servers.iter().copied().cloned().collect(),
        chain_id: CHAIN.to_owned(),
        height: Height(2),
        hash: true_hash(2, voters),
        period: WEEK,
        patience: Duration::ZERO,
        way_max: Duration::from_secs(600),
    }
}

/// What becomes of the root of height 29 where the first server does this, and the second is honest.
fn certified(first: Served, voters: Voters) -> Result<Version, LightError> {
    let (first, _) = first.serve();
    let (second, _) = Served { voters, ..honest() }.serve();
    Light::begin(settings(&[&first, &second], voters), now())?.certified(Height(29), now())
}

/// The same where a header is forged before it is signed by those who vote.
fn forged(forge: fn(&mut Header)) -> LightError {
    certified(Served { forge, ..honest() }, same).expect_err("it is forged")
}

/// The same where what is sent is changed.
fn spoiled(spoil: fn(&Asked<'_>, Reply) -> Reply) -> LightError {
    certified(Served { spoil, ..honest() }, same).expect_err("it is spoiled")
}

fn flaw(error: LightError) -> Flaw {
    match error {
        LightError::Refused { height: Height(30), flaw, .. } => flaw,
        other => panic!("{other}"),
    }
}

/// A light client over two honest servers, whose chain has 40 blocks; and the root of a height there.
pub(crate) fn over_honest_servers() -> (Light, fn(u64) -> Root) {
    let ((first, _), (second, _)) = (honest().serve(), honest().serve());
    // Whatever this machine's clock shows.
    let settings = Settings { period: WEEK * 10_000, ..settings(&[&first, &second], same) };
    (Light::begin(settings, now()).expect("it is trusted"), root)
}

/// spec: SNAP-18. One step does where the validators stay, a few where they change; what is certified is the root below.
#[test]
fn a_header_is_reached_over_those_who_vote_for_both() {
    for (voters, commits_max) in [(same as Voters, 2), (many, 2), (changing, 40)] {
        let (first, served) = Served { voters, ..honest() }.serve();
        let (second, witness) = Served { voters, ..honest() }.serve();
        let mut light = Light::begin(settings(&[&first, &second], voters), now()).expect("it is trusted");
        let certified = light.certified(Height(29), now()).expect("it is certified");
        let expected = Version { height: Height(29), root: root(29) };
        assert_eq!(certified, expected);
        let commits = served.commits.load(Ordering::Relaxed);
        assert!((2..=commits_max).contains(&commits), "{commits} headers were fetched");
        assert_eq!(witness.commits.load(Ordering::Relaxed), 1);
        // From where it is, forwards and back, and from the header that is trusted itself.
        for height in [29, 32, 12, 1] {
            let again = light.certified(Height(height), now()).expect("it is certified");
            assert_eq!((again.height, again.root), (Height(height), root(height)));
        }
        assert!(matches!(light.certified(Height(0), now()), Err(LightError::Below { anchor: Height(2), .. })));
        // A height that somebody made up: no header is above it.
        let last = Height(u64::MAX);
        assert!(matches!(light.certified(last, now()), Err(LightError::NoneAbove { height }) if height == last));
    }
}

/// spec: SNAP-18. C-03: the word of servers counts for nothing without votes, and votes for nothing but what was voted for.
#[test]
fn c03_a_header_that_the_validators_did_not_agree_on_is_refused_with_the_reason() {
    fn at_30(asked: &Asked<'_>, reply: Reply, change: fn(&mut Value)) -> Reply {
        match (asked.path, asked.height, reply) {
            ("/commit", 30, Reply::Result(mut value)) => {
                change(&mut value["signed_header"]);
                Reply::Result(value)
            }
            (_, _, reply) => reply,
        }
    }
    let touched = spoiled(|asked, reply| at_30(asked, reply, |it| it["header"]["app_hash"] = json!("AB".repeat(32))));
    assert!(matches!(flaw(touched), Flaw::OtherVote { .. }));
    let unsigned = spoiled(|asked, reply| {
        at_30(asked, reply, |it| {
            for vote in it["commit"]["signatures"].as_array_mut().expect("votes").iter_mut().take(2) {
                *vote = json!({ "block_id_flag": 1, "validator_address": "", "timestamp": "0001-01-01T00:00:00Z", "signature": null });
            }
        })
    });
    assert_eq!(flaw(unsigned), Flaw::TooFew { found: 20, total: 40 });
    let nobody = spoiled(|asked, reply| at_30(asked, reply, |it| it["commit"]["signatures"] = json!([])));
    assert!(matches!(flaw(nobody), Flaw::Votes(_)));
    let swapped = spoiled(|asked, reply| {
        at_30(asked, reply, |it| {
            let other = it["commit"]["signatures"][1]["signature"].take();
            it["commit"]["signatures"][0]["signature"] = other.clone();
            it["commit"]["signatures"][1]["signature"] = other;
        })
    });
    assert!(matches!(flaw(swapped), Flaw::Signature(_)));
    let twice = spoiled(|asked, reply| {
        at_30(asked, reply, |it| it["commit"]["signatures"][0] = it["commit"]["signatures"][1].clone())
    });
    assert!(matches!(flaw(twice), Flaw::Votes(_)));
    // Strangers who agree with one another, from a header on that the validators voted for.
    let voters: Voters = |height| if height > 20 { vec![(91, 10), (92, 10), (93, 10)] } else { same(height) };
    let forge = |header: &mut Header| {
        if header.height == 20 {
            header.next_validators_hash = hash_of(&same(21));
        }
    };
    match certified(Served { voters, forge, ..honest() }, same) {
        Err(LightError::Refused { flaw: Flaw::Validators { .. }, .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// spec: SNAP-18. What the validators would never agree on is refused even when they did.
#[test]
fn a_header_of_another_chain_time_or_state_is_refused_with_the_reason() {
    fn only_30(header: &mut Header, change: fn(&mut Header)) {
        if header.height == 30 {
            change(header);
        }
    }
    let other = forged(|header| only_30(header, |header| header.chain_id = "elsewhere".to_owned()));
    assert_eq!(flaw(other), Flaw::OtherChain { found: "elsewhere".to_owned(), expected: CHAIN.to_owned() });
    let future = forged(|header| only_30(header, |header| header.time.as_mut().expect("one").seconds += 200));
    assert!(matches!(flaw(future), Flaw::Future { .. }));
    let past = forged(|header| only_30(header, |header| header.time.as_mut().expect("one").seconds -= 200));
    assert!(matches!(flaw(past), Flaw::NotLater(_)));
    let root = forged(|header| only_30(header, |header| header.app_hash = vec![1; 8]));
    assert_eq!(flaw(root), Flaw::AppHash { bytes: 8 });
    let voters = forged(|header| only_30(header, |header| header.validators_hash = vec![1; 32]));
    assert!(matches!(flaw(voters), Flaw::Validators { .. }));
    let next = forged(|header| only_30(header, |header| header.next_validators_hash = vec![1; 32]));
    assert!(matches!(flaw(next), Flaw::Validators { .. }));
}

/// spec: SNAP-18. Trust begins with the header that was chosen, and ends with its time.
#[test]
fn trust_begins_with_one_header_and_ends_with_its_time() {
    let ((first, _), (second, _)) = (honest().serve(), honest().serve());
    let both = [&first, &second];
    let begin = |settings: Settings, now| Light::begin(settings, now).expect_err("refused");
    let other = Settings { hash: Hash([9; 32]), ..settings(&both, same) };
    match begin(other, now()) {
        LightError::OtherAnchor { height: Height(2), found, expected: Hash(expected), .. } => {
            assert_eq!((found, expected), (true_hash(2, same), [9; 32]));
        }
        other => panic!("{other}"),
    }
    let elsewhere = Settings { chain_id: "elsewhere".to_owned(), ..settings(&both, same) };
    assert!(matches!(begin(elsewhere, now()), LightError::Refused { flaw: Flaw::OtherChain { .. }, .. }));
    // Nobody but the header says who votes for the next: a set of another making could sign whatever comes behind it.
    let (liar, _) = Served {
        voters: changing,
        spoil: |asked, reply| match (asked.path, asked.height, reply) {
            ("/validators", 3, Reply::Result(mut set)) => {
                set["validators"][0]["voting_power"] = json!("11");
                Reply::Result(set)
            }
            (_, _, reply) => reply,
        },
        ..honest()
    }
    .serve();
    let lied_to = begin(settings(&[&liar, &second], changing), now());
    assert!(matches!(lied_to, LightError::Refused { height: Height(2), flaw: Flaw::Validators { .. }, .. }));
    let later = Timestamp(now().0 + 7 * 86_400_000);
    match begin(settings(&both, same), later) {
        LightError::Expired { height: Height(2), age_s, limit_s } => assert!(age_s >= limit_s && limit_s == 604_800),
        other => panic!("{other}"),
    }
    // It ends while one is on the way, too.
    let mut light = Light::begin(settings(&both, same), now()).expect("it is trusted");
    assert!(matches!(light.certified(Height(29), later), Err(LightError::Expired { .. })));
    assert!(matches!(light.certified(Height(40), now()), Err(LightError::NotThere { tip: Height(40), .. })));
}

/// spec: SNAP-18. Two servers are two nodes, and where they differ none is believed: both are named, and whether the other
/// header is signed as well.
#[test]
fn c03_two_servers_that_differ_are_both_named_and_neither_is_believed() {
    let (first, _) = honest().serve();
    let alone = Light::begin(settings(&[&first], same), now());
    assert!(matches!(alone, Err(LightError::TooFew { count: 1 })));
    let twice = Light::begin(settings(&[&first, &first], same), now());
    assert!(matches!(twice, Err(LightError::SameNode(_))));

    let ask = |other: &Rpc| {
        let mut light = Light::begin(settings(&[&first, other], same), now()).expect("it is trusted");
        light.certified(Height(29), now()).expect_err("they differ")
    };
    // Another history from block 20 on, which the validators have signed.
    let forge = |header: &mut Header| {
        if header.height >= 20 {
            header.data_hash = vec![0xee; 32];
        }
    };
    let (other, _) = Served { forge, ..honest() }.serve();
    let error = ask(&other);
    let text = error.to_string();
    assert!(text.contains(first.authority()) && text.contains(other.authority()), "{text}");
    let fork = |error| match error {
        LightError::Forked(fork) => (fork.height, fork.other_is),
        other => panic!("{other}"),
    };
    assert_eq!(fork(error), (Height(30), Other::Proven), "{text}");
    // The same, not signed.
    let (other, _) = Served {
        spoil: |asked, reply| match (asked.path, asked.height, reply) {
            ("/commit", 30, Reply::Result(mut value)) => {
                value["signed_header"]["header"]["data_hash"] = json!("EE".repeat(32));
                Reply::Result(value)
            }
            (_, _, reply) => reply,
        },
        ..honest()
    }
    .serve();
    assert!(matches!(fork(ask(&other)), (Height(30), Other::Unproven(_))));
    // Nobody to compare with is not enough, whatever the reason.
    let (behind, _) = Served { tip: AtomicUsize::new(20), ..honest() }.serve();
    let (silent, _) = Served { spoil: |_, _| Reply::Silence, ..honest() }.serve();
    let silent = silent.timeout(SHORT);
    for other in [&behind, &silent] {
        match ask(other) {
            LightError::Unconfirmed { height: Height(30), heard, .. } => assert_eq!(heard[0].0, other.authority()),
            other => panic!("{other}"),
        }
    }
    // One that says so is enough, if none says otherwise.
    let (third, _) = honest().serve();
    let mut light = Light::begin(settings(&[&first, &behind, &third], same), now()).expect("it is trusted");
    assert_eq!(light.certified(Height(29), now()).expect("two agree").root, root(29));
}

/// Whatever a server sends instead of an answer ends with a bound that is named.
#[test]
fn s11_a_server_that_answers_nothing_or_without_end_is_given_up() {
    let ask = |spoil: fn(&Asked<'_>, Reply) -> Reply| {
        let (first, _) = Served { spoil, ..honest() }.serve();
        let (second, _) = honest().serve();
        let first = first.timeout(SHORT);
        match Light::begin(settings(&[&first, &second], same), now()).expect_err("no answer") {
            LightError::Rpc(error) => {
                assert!(error.to_string().contains(first.authority()), "{error}");
                error
            }
            other => panic!("{other}"),
        }
    };
    assert!(matches!(ask(|_, _| Reply::Silence), RpcError::Unreachable { .. }));
    match ask(|_, _| Reply::Drip) {
        RpcError::Unreachable { source, .. } => assert_eq!(source.to_string(), "the answer takes too long"),
        other => panic!("{other}"),
    }
    // As long as it is quick, it is the size that ends it.
    let endless = |spoil: fn(&Asked<'_>, Reply) -> Reply| match spoiled(spoil) {
        LightError::Rpc(RpcError::TooLarge { limit, .. }) => limit,
        other => panic!("{other}"),
    };
    assert_eq!(endless(|asked, reply| if asked.path == "/commit" { Reply::Endless } else { reply }), 4 << 20);
    assert_eq!(endless(|asked, reply| if asked.path == "/validators" { Reply::Endless } else { reply }), 128 << 10);
}

/// R-03: JSON from a server is bounded in depth and means one thing, and what else it sends is none.
#[test]
fn r03_what_is_no_answer_of_cometbft_is_refused_by_form() {
    let none = |spoil: fn(&Asked<'_>, Reply) -> Reply| match spoiled(spoil) {
        LightError::Rpc(RpcError::Form { .. }) => {}
        other => panic!("{other}"),
    };
    none(|_, _| Reply::Raw("[".repeat(10_000).into_bytes()));
    none(|_, _| Reply::Raw(br#"{"result":1,"result":2}"#.to_vec()));
    none(|_, _| Reply::Raw(b"\xff\xfe".to_vec()));
    none(|_, _| Reply::Raw(Vec::new()));
    none(|asked, reply| match reply {
        Reply::Result(value) if asked.path == "/commit" => Reply::Pieces(value),
        reply => reply,
    });
    assert!(matches!(spoiled(|_, _| Reply::Error("no")), LightError::Rpc(RpcError::Refused { .. })));
    let shape = |spoil: fn(&Asked<'_>, Reply) -> Reply| match spoiled(spoil) {
        LightError::Form { error, .. } => error,
        other => panic!("{other}"),
    };
    let other = shape(|asked, reply| match (asked.path, reply) {
        ("/commit", Reply::Result(value)) => {
            let text = value.to_string().replace(r#""height":"2""#, r#""height":"3""#);
            Reply::Result(serde_json::from_str(&text).expect("it was JSON"))
        }
        (_, reply) => reply,
    });
    assert!(matches!(other, FormError::OtherHeight { .. }), "{other}");
    for part in ["header", "commit"] {
        let without: fn(&Asked<'_>, Reply) -> Reply = match part {
            "header" => |asked, reply| match (asked.path, reply) {
                ("/commit", Reply::Result(mut value)) => {
                    value["signed_header"]["header"] = Value::Null;
                    Reply::Result(value)
                }
                (_, reply) => reply,
            },
            _ => |asked, reply| match (asked.path, reply) {
                ("/commit", Reply::Result(mut value)) => {
                    value["signed_header"]["commit"]["block_id"]["hash"] = json!("00");
                    Reply::Result(value)
                }
                (_, reply) => reply,
            },
        };
        assert!(matches!(shape(without), FormError::None { .. }), "{part}");
    }
}

/// R-03: A server that gives a set voter by voter is not asked on, and one that takes all the time there is for each answer has an end.
#[test]
fn r03_a_way_takes_as_many_exchanges_as_it_needs_and_no_longer_than_it_may() {
    let drop_by_drop = spoiled(|asked, reply| match (asked.path, asked.page, reply) {
        ("/validators", 1, Reply::Result(mut set)) => {
            set["validators"] = json!([set["validators"][0].clone()]);
            Reply::Result(set)
        }
        // It would be met on the second page.
        ("/validators", _, _) => Reply::Endless,
        (.., reply) => reply,
    });
    assert!(matches!(drop_by_drop, LightError::Form { error: FormError::Count { .. }, .. }), "{drop_by_drop}");
    let ((first, _), (second, _)) = (honest().serve(), honest().serve());
    let slow = Settings { way_max: Duration::ZERO, ..settings(&[&first, &second], same) };
    let slow = Light::begin(slow, now()).map(drop).expect_err("there is no time");
    assert!(matches!(slow, LightError::Slow { height: Height(2), .. }), "{slow}");
}

/// A set of validators comes in pages, which are as many as it says, and no more than there can be.
#[test]
fn a_set_of_validators_is_bounded_in_number_and_power() {
    fn changed(asked: &Asked<'_>, reply: Reply, change: fn(&mut Value)) -> Reply {
        match (asked.path, reply) {
            ("/validators", Reply::Result(mut value)) => {
                change(&mut value);
                Reply::Result(value)
            }
            (_, reply) => reply,
        }
    }
    let refused = |spoil: fn(&Asked<'_>, Reply) -> Reply| match spoiled(spoil) {
        LightError::Form { error, .. } => error,
        other => panic!("{other}"),
    };
    let count = |spoil| assert!(matches!(refused(spoil), FormError::Count { .. }));
    count(|asked, reply| changed(asked, reply, |set| set["total"] = json!("10001")));
    count(|asked, reply| changed(asked, reply, |set| set["total"] = json!("-1")));
    count(|asked, reply| changed(asked, reply, |set| set["total"] = json!("3")));
    count(|asked, reply| changed(asked, reply, |set| set["validators"] = json!([])));
    count(|asked, reply| changed(asked, reply, |set| set["validators"] = Value::Null));
    // More are to come, and the same ones come again; or none do.
    let again = refused(|asked, reply| changed(asked, reply, |set| set["total"] = json!("10000")));
    assert!(matches!(again, FormError::Count { .. }), "{again}");
    let twice =
        refused(|asked, reply| changed(asked, reply, |set| set["validators"][1] = set["validators"][0].clone()));
    assert!(matches!(twice, FormError::Twice { .. }), "{twice}");
    let another = refused(|asked, reply| changed(asked, reply, |set| set["block_height"] = json!("7")));
    assert!(matches!(another, FormError::OtherHeight { .. }), "{another}");
    let all = refused(|asked, reply| {
        changed(asked, reply, |set| set["validators"][0]["voting_power"] = json!((i64::MAX / 8).to_string()))
    });
    assert_eq!(all, FormError::Power);
    for (field, value) in [("voting_power", json!("0")), ("voting_power", json!("-5")), ("pub_key", json!("x"))] {
        let spoil: fn(&Asked<'_>, Reply) -> Reply = match (field, value.as_str()) {
            ("pub_key", _) => |asked, reply| {
                changed(asked, reply, |set| {
                    set["validators"][0]["pub_key"]["type"] = json!("tendermint/PubKeySecp256k1")
                })
            },
            (_, Some("0")) => {
                |asked, reply| changed(asked, reply, |set| set["validators"][0]["voting_power"] = json!("0"))
            }
            _ => |asked, reply| changed(asked, reply, |set| set["validators"][0]["voting_power"] = json!("-5")),
        };
        assert!(matches!(refused(spoil), FormError::None { .. }), "{field}");
    }
    // An address that is somebody else's does not move a vote: it is computed.
    let (first, _) = Served {
        spoil: |asked, reply| {
            changed(asked, reply, |set| set["validators"][0]["address"] = set["validators"][1]["address"].clone())
        },
        ..honest()
    }
    .serve();
    let (second, _) = honest().serve();
    let mut light = Light::begin(settings(&[&first, &second], same), now()).expect("it is trusted");
    assert_eq!(light.certified(Height(29), now()).expect("it is certified").root, root(29));
}

/// A header that comes a moment later is waited for, if it is the next.
#[test]
fn the_header_that_comes_next_is_waited_for() {
    // It is asked for when it begins, and stands at 29 when it is asked again.
    let (first, _) = Served { tip: AtomicUsize::new(28), grows: 1, ..honest() }.serve();
    let (second, _) = honest().serve();
    let patient = Settings { patience: Duration::from_secs(60), ..settings(&[&first, &second], same) };
    let mut light = Light::begin(patient, now()).expect("it is trusted");
    assert_eq!(light.certified(Height(29), now()).expect("it came").root, root(29));
}
