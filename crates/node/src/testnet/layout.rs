//! What a test network is made of, on disk: keys, genesis and configuration of every node, and one file that names them.

use super::hosts::{Hosts, free_ports};
use crate::clock::now;
use crate::cometbft::config_file::{Edit, edited};
use crate::cometbft::genesis::engine_genesis;
use crate::cometbft::home::{read as read_text, replace};
use crate::cometbft::keys::{NOTHING_SIGNED, node_file, node_id, validator_file};
use crate::cometbft::rpc::Rpc;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::home::Home;
use crate::newfile::{create_private_dir, replace_private};
use crate::strict_json;
use keelstone_codec::{ChainId, Key, Namespace, Tag, TaggedHasher, Value};
use keelstone_ledger::{Genesis, SecretKey, Validator};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The version of `testnet.json` this program writes and reads.
const VERSION: u32 = 1;
/// Nodes of one network. Each is two processes, on one machine.
pub(crate) const NODES_MAX: u8 = 32;
/// Bytes of the path of a Unix socket, on the systems that allow least.
const SOCKET_PATH_MAX: usize = 103;
/// The power of every validator.
const POWER: u64 = 10;
/// Entries of ballast: they stand in the genesis file, which every node reads at every start.
pub(crate) const BALLAST_MAX: u32 = 2_000_000;
/// Bytes of the value of one.
const BALLAST_BYTES: usize = 100;
/// How long a node of the network may take to answer a question of the owner.
pub(crate) const ASK: Duration = Duration::from_secs(2);

/// A network on disk: the content of `testnet.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Layout {
    version: u32,
    /// The network's name.
    pub(crate) chain_id: String,
    /// What connects the nodes.
    pub(crate) hosts: Hosts,
    /// The CometBFT that runs.
    pub(crate) cometbft: PathBuf,
    /// Settings of every Keelstone node, as `section.name=value`.
    settings: Vec<String>,
    /// Settings of every CometBFT node, as `section.key=value`.
    engine_settings: Vec<String>,
    /// The nodes.
    pub(crate) nodes: Vec<Node>,
    #[serde(skip)]
    dir: PathBuf,
}

/// What a network is to be like.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) chain_id: String,
    pub(crate) validators: u8,
    pub(crate) hosts: Hosts,
    pub(crate) cometbft: PathBuf,
    /// `section.name=value` for every Keelstone node.
    pub(crate) settings: Vec<String>,
    /// `section.key=value` for every CometBFT node.
    pub(crate) engine_settings: Vec<String>,
    /// Entries of 100 bytes that the chain begins with, so that there is something to sync.
    pub(crate) ballast: u32,
    /// The weight of a chunk of a snapshot; none is the chain's default.
    pub(crate) chunk_bytes: Option<u32>,
    /// Whether every Keelstone runs its CometBFT.
    pub(crate) supervised: bool,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Node {
    /// `node0`, `node1` and so on.
    pub(crate) name: String,
    /// Its number.
    pub(crate) index: u8,
    /// Whether it is a validator from the beginning.
    pub(crate) validator: bool,
    /// Whether its Keelstone runs its CometBFT.
    pub(crate) supervised: bool,
    /// Its id among the engine's peers.
    pub(crate) node_id: String,
    /// Where Keelstone's API listens.
    pub(crate) http: SocketAddr,
    /// Where CometBFT's RPC listens.
    pub(crate) rpc: SocketAddr,
    /// Where CometBFT's peers connect.
    pub(crate) p2p: SocketAddr,
}

impl Node {
    /// CometBFT's RPC, asked with little patience: it is on this machine.
    pub(crate) fn rpc(&self) -> Rpc {
        Rpc::at(&self.rpc.into()).timeout(ASK)
    }
}

impl Layout {
    /// Lays out a new network in a directory that holds none yet. One that fails leaves nothing of it.
    pub(crate) fn create(dir: &Path, wish: &Wish) -> Result<Self, Failure> {
        let mut layout = Self::check(dir, wish)?;
        create_private_dir(&layout.dir).map_err(|error| Failure::io(layout.dir.display(), &error))?;
        match layout.fill(wish) {
            Ok(()) => Ok(layout),
            Err(failure) => {
                // Nothing of these names was there before.
                for node in &layout.nodes {
                    if let Err(failure) = remove_dir(&layout.node_dir(node)) {
                        tracing::warn!(%failure, node = node.name, "not all of it is removed");
                    }
                }
                Err(failure)
            }
        }
    }

    /// Names the first nodes, and writes what they and the network are made of.
    fn fill(&mut self, wish: &Wish) -> Result<(), Failure> {
        let mut keys = Vec::new();
        for _ in 0..wish.validators {
            let (mine, engine) = (fresh_key()?, fresh_key()?);
            self.name_node(true, wish.supervised, &engine)?;
            keys.push((mine, engine));
        }
        let genesis = self.genesis(wish, &keys.iter().map(|(key, _)| key).collect::<Vec<_>>())?;
        for (node, (key, engine)) in self.nodes.clone().iter().zip(&keys) {
            self.write_node(node, key, engine, &genesis)?;
        }
        self.write()
    }

    /// A network as wished for, without nodes still: refuses what could not be one, and makes nothing. What was refused only
    /// later would leave a directory that no corrected wish can use.
    pub(crate) fn check(dir: &Path, wish: &Wish) -> Result<Self, Failure> {
        let dir = std::path::absolute(dir).map_err(|error| Failure::io("no current directory", &error))?;
        let socket = dir.join("node00/keelstone/data/abci.sock");
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            let message = format!("{} is too long a path: sockets in it could not be named", dir.display());
            return Err(Failure::usage(message).hint("give a shorter --dir"));
        }
        if wish.validators == 0 || wish.validators > NODES_MAX {
            return Err(Failure::usage(format!("--validators {}: expected 1 to {NODES_MAX}", wish.validators)));
        }
        ChainId::new(&wish.chain_id).map_err(|error| Failure::usage(format!("--chain-id: {error}")))?;
        let mut layout = Self {
            version: VERSION,
            chain_id: wish.chain_id.clone(),
            hosts: wish.hosts.clone(),
            cometbft: wish.cometbft.clone(),
            settings: wish.settings.clone(),
            engine_settings: wish.engine_settings.clone(),
            nodes: Vec::new(),
            dir,
        };
        check_settings(&wish.settings)?;
        for index in 0..wish.validators {
            layout.check_free(index)?;
        }
        let key = fresh_key()?;
        let example = layout.name_node(true, wish.supervised, &key)?;
        layout.engine_config(&example)?;
        layout.nodes.clear();
        layout.genesis(&Wish { ballast: 0, ..wish.clone() }, &[&key])?;
        Ok(layout)
    }

    /// Refuses a name for a node under which something is there already: what belongs to the network is removed with it.
    fn check_free(&self, index: u8) -> Result<(), Failure> {
        let path = self.dir.join(node_name(index));
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Failure::io(path.display(), &error)),
            Ok(_) => {}
        }
        let hint = match Self::unfinished(&self.dir) {
            Some(_) => "keelstone testnet down --remove removes what a network that was not finished left".to_owned(),
            None => {
                let names = (0..NODES_MAX).map(node_name).filter(|name| self.dir.join(name).exists());
                let names = names.filter(|name| self.nodes.iter().all(|node| node.name != *name));
                let names = names.collect::<Vec<_>>().join(", ");
                format!(
                    "if a network that was not finished left it, remove it by hand, for there is more in the directory: {names}"
                )
            }
        };
        Err(Failure::usage(format!("{} is there already", path.display())).hint(hint))
    }

    /// What a network that was not finished left in a directory besides its lock: nothing else is in there. None if anything
    /// is.
    pub(crate) fn unfinished(dir: &Path) -> Option<Vec<PathBuf>> {
        let names = |dir: &Path| -> Option<Vec<String>> {
            let entries = fs::read_dir(dir).ok()?;
            entries.map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
        };
        let is_half_written = |name: &str| name.starts_with(".testnet.json.") && name.ends_with(".new");
        let mut left = Vec::new();
        let mut is_held = false;
        for name in names(dir)? {
            let path = dir.join(&name);
            let is_node = (0..NODES_MAX).any(|index| name == node_name(index)) && path.is_dir();
            if (is_node && names(&path)?.iter().all(|name| NODE_FILES.contains(&name.as_str())))
                || is_half_written(&name)
            {
                left.push(path);
            } else if name == LOCK {
                is_held = true;
            } else {
                return None;
            }
        }
        is_held.then_some(left)
    }

    /// Names another CometBFT to run.
    pub(crate) fn use_cometbft(&mut self, cometbft: PathBuf) -> Result<(), Failure> {
        if self.cometbft == cometbft {
            return Ok(());
        }
        self.cometbft = cometbft;
        self.write()
    }

    /// The network in a directory.
    pub(crate) fn read(dir: &Path) -> Result<Self, Failure> {
        let dir = std::path::absolute(dir).map_err(|error| Failure::io("no current directory", &error))?;
        let path = Self::file(&dir);
        let text = fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let message = format!("there is no test network in {}", dir.display());
                Failure::new(Exit::NoChain, message).hint("keelstone testnet up makes one")
            }
            _ => Failure::io(format_args!("could not read {}", path.display()), &error),
        })?;
        let layout: Self =
            strict_json::parse(&text).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
        if layout.version != VERSION {
            let message = format!("{} has version {}, this program knows {VERSION}", path.display(), layout.version);
            return Err(Failure::usage(message));
        }
        Ok(Self { dir, ..layout })
    }

    /// Whether a directory holds a network.
    pub(crate) fn exists(dir: &Path) -> bool {
        Self::file(dir).exists()
    }

    fn file(dir: &Path) -> PathBuf {
        dir.join("testnet.json")
    }

    /// The network's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The node of a name, or a failure that names those there are.
    pub(crate) fn node(&self, name: &str) -> Result<&Node, Failure> {
        self.nodes.iter().find(|node| node.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            Failure::not_found(format!("there is no node {name:?}; there are {}", names.join(", ")))
        })
    }

    /// A node's directory.
    pub(crate) fn node_dir(&self, node: &Node) -> PathBuf {
        self.dir.join(&node.name)
    }

    /// The home of a node's Keelstone.
    pub(crate) fn home(&self, node: &Node) -> Home {
        Home::new(self.node_dir(node).join("keelstone"))
    }

    /// The home of a node's CometBFT.
    pub(crate) fn engine_home(&self, node: &Node) -> PathBuf {
        self.node_dir(node).join("cometbft")
    }

    /// Where a node's Keelstone waits for its CometBFT.
    pub(crate) fn abci_socket(&self, node: &Node) -> PathBuf {
        self.home(node).data().join("abci.sock")
    }

    /// Adds a full node to the network and writes everything it needs. One that fails leaves the network as it was.
    pub(crate) fn add_full_node(&mut self, supervised: bool, edits: &[Edit]) -> Result<Node, Failure> {
        if self.nodes.len() >= usize::from(NODES_MAX) {
            return Err(Failure::usage(format!("the network has {NODES_MAX} nodes, more are not run on one machine")));
        }
        let (key, engine) = (fresh_key()?, fresh_key()?);
        let first = self.nodes.first().ok_or_else(|| Failure::usage("the network has no nodes"))?;
        let genesis = GenesisFiles {
            keelstone: read_own(&self.home(first).genesis())?,
            cometbft: read_own(&self.engine_home(first).join("config/genesis.json"))?,
        };
        self.check_free(u8::try_from(self.nodes.len()).expect("the number of nodes was checked"))?;
        let node = self.name_node(false, supervised, &engine)?;
        let written = self
            .write_node(&node, &key, &engine, &genesis)
            .and_then(|()| self.edit_engine(&node, edits))
            .and_then(|()| self.write());
        match written {
            Ok(()) => Ok(node),
            Err(failure) => {
                if let Err(failure) = self.forget(&node) {
                    tracing::warn!(%failure, node = node.name, "not all of it is removed");
                }
                Err(failure)
            }
        }
    }

    /// Removes a node that does not run from the network, and all it has.
    pub(crate) fn forget(&mut self, node: &Node) -> Result<(), Failure> {
        self.nodes.retain(|other| other.name != node.name);
        self.write()?;
        remove_dir(&self.node_dir(node))
    }

    /// Changes a node's `config.toml`.
    pub(crate) fn edit_engine(&self, node: &Node, edits: &[Edit]) -> Result<(), Failure> {
        let config = self.engine_home(node).join("config/config.toml");
        let text = read_text(&config)?;
        let fresh = edited(&text, edits).map_err(|error| Failure::usage(format!("{}: {error}", config.display())))?;
        if fresh == text { Ok(()) } else { replace(&config, &fresh) }
    }

    /// A number in a node's `config.toml`; none if it is CometBFT's default.
    pub(crate) fn engine_number(&self, node: &Node, section: &str, key: &str) -> Option<u64> {
        let text = read_text(&self.engine_home(node).join("config/config.toml")).ok()?;
        let number = text.parse::<toml::Table>().ok()?.get(section)?.get(key)?.as_integer();
        number.and_then(|number| number.try_into().ok())
    }

    fn write(&self) -> Result<(), Failure> {
        let path = Self::file(&self.dir);
        let text = serde_json::to_string_pretty(self).expect("a layout has text keys and no failing serializers");
        write_file(&path, &(text + "\n"))
    }

    /// Gives the next node a name and addresses.
    fn name_node(&mut self, validator: bool, supervised: bool, engine: &SecretKey) -> Result<Node, Failure> {
        let index = u8::try_from(self.nodes.len()).expect("the number of nodes was checked");
        let taken: BTreeSet<u16> =
            self.nodes.iter().flat_map(|node| [node.http, node.rpc, node.p2p]).map(|a| a.port()).collect();
        let address = self.hosts.address(index);
        let [http, rpc, p2p] = free_ports(&taken)?.map(|port| SocketAddr::new(address, port));
        let node_id = node_id(&engine.public());
        let node = Node { name: node_name(index), index, validator, supervised, node_id, http, rpc, p2p };
        self.nodes.push(node.clone());
        Ok(node)
    }

    /// The genesis of both sides: the same validators, and CometBFT's names the hash of Keelstone's.
    fn genesis(&self, wish: &Wish, validators: &[&SecretKey]) -> Result<GenesisFiles, Failure> {
        let chain_id = ChainId::new(&self.chain_id).map_err(|error| Failure::usage(format!("--chain-id: {error}")))?;
        let mut genesis = Genesis { time: now(), state: ballast(wish.ballast), ..Genesis::new(chain_id) };
        let voter = |key: &&SecretKey| Validator { key: key.public(), power: POWER };
        genesis.validators = validators.iter().map(voter).collect();
        if let Some(bytes) = wish.chunk_bytes {
            genesis.limits.snapshot_chunk_bytes = bytes;
        }
        let first = genesis.first_state().map_err(|error| Failure::usage(error.to_string()))?;
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        let cometbft = engine_genesis(&genesis, first.hash, &names);
        let cometbft = serde_json::to_string_pretty(&cometbft).expect("a JSON value is JSON");
        Ok(GenesisFiles { keelstone: genesis.to_json().to_pretty() + "\n", cometbft: cometbft + "\n" })
    }

    fn write_node(
        &self,
        node: &Node,
        key: &SecretKey,
        engine: &SecretKey,
        genesis: &GenesisFiles,
    ) -> Result<(), Failure> {
        let (home, engine_home) = (self.home(node), self.engine_home(node));
        for directory in [&home.data(), &engine_home.join("config"), &engine_home.join("data")] {
            create_private_dir(directory).map_err(|error| Failure::io(directory.display(), &error))?;
        }
        write_file(&home.genesis(), &genesis.keelstone)?;
        write_file(&home.config(), &self.keelstone_config(node))?;
        let config = engine_home.join("config");
        write_file(&config.join("genesis.json"), &genesis.cometbft)?;
        write_file(&config.join("config.toml"), &self.engine_config(node)?)?;
        write_file(&config.join("priv_validator_key.json"), &validator_file(key))?;
        write_file(&config.join("node_key.json"), &node_file(engine))?;
        write_file(&engine_home.join("data/priv_validator_state.json"), NOTHING_SIGNED)
    }

    fn keelstone_config(&self, node: &Node) -> String {
        format!(
            "# A node of a test network. keelstone config default prints every setting.\n\n\
             [http]\nlisten = \"{}\"\n\n\
             [engine]\nkind = \"cometbft\"\nabci = \"unix://{}\"\nrpc = \"http://{}\"\n",
            node.http,
            self.abci_socket(node).display(),
            node.rpc
        )
    }

    /// What a node's Keelstone is started with besides its home.
    pub(crate) fn settings_of(&self, node: &Node) -> Vec<String> {
        let own = [
            "engine.supervise=true".to_owned(),
            format!("engine.cometbft={}", self.cometbft.display()),
            format!("engine.cometbft_home={}", self.engine_home(node).display()),
        ];
        self.settings.iter().cloned().chain(own.into_iter().filter(|_| node.supervised)).collect()
    }

    fn engine_edits(&self) -> Result<Vec<Edit>, Failure> {
        let parse = |text: &String| {
            Edit::parse(text).ok_or_else(|| Failure::usage(format!("--engine-set {text}: expected section.key=value")))
        };
        self.engine_settings.iter().map(parse).collect()
    }

    /// What differs from CometBFT's defaults; it fills in the rest.
    fn engine_config(&self, node: &Node) -> Result<String, Failure> {
        let others = self.nodes.iter().filter(|other| other.name != node.name);
        let peers: Vec<String> = others.map(|other| format!("{}@{}", other.node_id, other.p2p)).collect();
        let text = format!(
            "# A node of a test network: what differs from CometBFT's defaults.\n\n\
             moniker = \"{name}\"\nproxy_app = \"unix://{abci}\"\n\n\
             [rpc]\nladdr = \"tcp://{rpc}\"\n\n\
             [p2p]\nladdr = \"tcp://{p2p}\"\npersistent_peers = \"{peers}\"\n\
             # All nodes are on one machine, with private addresses.\n\
             addr_book_strict = false\nallow_duplicate_ip = true\npex = false\n\
             persistent_peers_max_dial_period = \"2s\"\n\n\
             [consensus]\ntimeout_propose = \"1s\"\n\n\
             # Keelstone keeps its own index of transactions.\n\
             [tx_index]\nindexer = \"null\"\n",
            name = node.name,
            abci = self.abci_socket(node).display(),
            rpc = node.rpc,
            p2p = node.p2p,
            peers = peers.join(","),
        );
        edited(&text, &self.engine_edits()?).map_err(|error| Failure::usage(format!("--engine-set: {error}")))
    }
}

/// What a node is called.
fn node_name(index: u8) -> String {
    format!("node{index}")
}

/// The file that is locked by whoever has a network's directory.
pub(crate) const LOCK: &str = "testnet.lock";
/// What the directory of a node consists of.
const NODE_FILES: [&str; 4] = ["keelstone", "cometbft", "keelstone.log", "cometbft.log"];
/// Settings of a Keelstone that differ from node to node, or that make it a node of this network.
const OWN_SETTINGS: [&str; 7] = [
    "http.listen",
    "engine.kind",
    "engine.abci",
    "engine.rpc",
    "engine.supervise",
    "engine.cometbft",
    "engine.cometbft_home",
];

/// Refuses settings with which no Keelstone of a network would start.
fn check_settings(settings: &[String]) -> Result<(), Failure> {
    let key = |setting: &String| setting.split_once('=').map_or(setting.clone(), |(key, _)| key.to_owned());
    if let Some(own) = settings.iter().map(key).find(|key| OWN_SETTINGS.contains(&key.as_str())) {
        return Err(Failure::usage(format!("--set {own}: a test network sets this itself, for each node")));
    }
    // There is no such file, so it is the settings alone.
    Config::load(Path::new(""), settings)?;
    Ok(())
}

/// Removes a directory and all in it, if it is there.
pub(crate) fn remove_dir(dir: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::io(format_args!("could not remove {}", dir.display()), &error))
        }
        _ => Ok(()),
    }
}

/// The genesis, as each side reads it.
struct GenesisFiles {
    keelstone: String,
    cometbft: String,
}

/// Entries of 100 bytes under keys that no two share. Values do not compress, as what people put there may not.
fn ballast(count: u32) -> BTreeMap<(Namespace, Key), Value> {
    let namespace = Namespace::new("ballast").expect("a constant");
    let hash =
        |number: u32, part: u8| TaggedHasher::new(Tag::new("testnet-ballast")).value(&number).value(&part).finish().0;
    let entry = |number: u32| {
        let key = Key::new(hash(number, 0)).expect("32 bytes are a key");
        let value: Vec<u8> = (1..=4).flat_map(|part| hash(number, part)).take(BALLAST_BYTES).collect();
        ((namespace.clone(), key), Value::new(value).expect("100 bytes are a value"))
    };
    (0..count).map(entry).collect()
}

fn fresh_key() -> Result<SecretKey, Failure> {
    SecretKey::generate().map_err(|error| Failure::io("no randomness for a new key", &error))
}

/// A file of the network's own, however long.
fn read_own(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::io(format_args!("could not read {}", path.display()), &error))
}

fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    replace_private(path, text.as_bytes())
        .map_err(|error| Failure::io(format_args!("could not write {}", path.display()), &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wish(validators: u8) -> Wish {
        Wish {
            chain_id: "play".to_owned(),
            validators,
            hosts: Hosts::Loopback,
            cometbft: "cometbft".into(),
            settings: vec!["snapshots.interval=10".to_owned()],
            engine_settings: vec!["consensus.timeout_commit=150ms".to_owned()],
            ballast: 10,
            chunk_bytes: None,
            supervised: false,
        }
    }

    #[test]
    fn a_network_is_laid_out_and_read_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut layout = Layout::create(&dir.path().join("net"), &wish(4)).expect("laid out");
        assert_eq!(Layout::read(&dir.path().join("net")).expect("read"), layout);
        let joined = layout.add_full_node(false, &[]).expect("added");
        assert_eq!((joined.name.as_str(), joined.validator, layout.nodes.len()), ("node4", false, 5));

        let config = |node: &Node| {
            let text = fs::read_to_string(layout.engine_home(node).join("config/config.toml")).expect("readable");
            text.parse::<toml::Table>().expect("TOML")
        };
        let table = config(&joined);
        let peers = table["p2p"]["persistent_peers"].as_str().expect("text");
        assert_eq!(peers.split(',').count(), 4, "a joiner knows all others");
        layout.edit_engine(&joined, &[Edit::new("p2p", "recv_rate", 1_000)]).expect("edited");
        assert_eq!(layout.engine_number(&joined, "p2p", "recv_rate"), Some(1_000));
        assert_eq!(layout.engine_number(&joined, "p2p", "send_rate"), None, "CometBFT's default");
        assert_eq!(table["consensus"]["timeout_commit"].as_str(), Some("150ms"));
        let genesis = |node: &Node| fs::read(layout.engine_home(node).join("config/genesis.json")).expect("readable");
        assert_eq!(genesis(&layout.nodes[0]), genesis(&joined), "one genesis for all");
        let genesis: serde_json::Value = serde_json::from_slice(&genesis(&joined)).expect("JSON");
        assert_eq!(genesis["validators"].as_array().map(Vec::len), Some(4));
        let home = layout.home(&joined).read_genesis().expect("a genesis");
        assert_eq!(genesis["app_state"], json!(home.first_state().expect("valid").hash));
    }

    #[cfg(unix)]
    #[test]
    fn keys_of_a_test_network_are_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let layout = Layout::create(&dir.path().join("net"), &wish(1)).expect("laid out");
        let config = layout.engine_home(&layout.nodes[0]).join("config");
        for file in ["priv_validator_key.json", "node_key.json"] {
            let mode = fs::metadata(config.join(file)).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        assert_eq!(fs::metadata(layout.dir()).expect("there").permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn wishes_that_cannot_be_met_are_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let long = dir.path().join("x".repeat(100));
        for (path, wish, says) in [
            (&long, wish(1), "too long a path"),
            (&dir.path().join("a"), wish(0), "expected 1 to 32"),
            (&dir.path().join("a"), Wish { engine_settings: vec!["x".to_owned()], ..wish(1) }, "section.key=value"),
            (&dir.path().join("a"), Wish { chain_id: String::new(), ..wish(1) }, "--chain-id"),
            (&dir.path().join("a"), Wish { engine_settings: vec!["p2p=5".to_owned()], ..wish(1) }, "--engine-set"),
            (
                &dir.path().join("a"),
                Wish { settings: vec!["nosuch.setting=1".to_owned()], ..wish(1) },
                "nosuch.setting",
            ),
            (
                &dir.path().join("a"),
                Wish { settings: vec!["http.listen=[::1]:1".to_owned()], ..wish(1) },
                "http.listen",
            ),
            (&dir.path().join("a"), Wish { chunk_bytes: Some(1), ..wish(1) }, "snapshot_chunk_bytes"),
        ] {
            let error = Layout::create(path, &wish).expect_err("refused");
            assert!(error.message.contains(says), "{error} does not say {says:?}");
            assert!(!path.exists());
        }
        assert_eq!(Layout::read(dir.path()).expect_err("nothing there").exit, Exit::NoChain);
    }

    /// What is removed with a network is the network's: a directory that was there before is nobody's to remove.
    #[test]
    fn a_node_is_never_laid_out_over_what_is_there() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let notes = dir.path().join("node1/notes.txt");
        fs::create_dir(dir.path().join("node1")).expect("made");
        fs::write(&notes, "mine").expect("written");
        let refused = Layout::create(dir.path(), &wish(2)).expect_err("refused");
        assert!(refused.message.contains("node1 is there already"), "{refused}");
        let hint = refused.hint.expect("what to do");
        assert!(hint.ends_with("by hand, for there is more in the directory: node1"), "{hint}");
        assert!(!dir.path().join("node0").exists(), "nothing is made");
        let mut layout = Layout::create(dir.path(), &wish(1)).expect("another name");
        let error = layout.add_full_node(false, &[]).expect_err("refused");
        assert!(error.message.contains("node1 is there already"), "{error}");
        assert_eq!((layout.nodes.len(), fs::read(&notes).expect("there")), (1, b"mine".to_vec()));
    }

    /// What came to nothing is not in the way of the next try, whatever else is in the directory.
    #[test]
    fn a_network_that_cannot_be_laid_out_leaves_no_nodes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Its name is taken by what no file can be put in the place of.
        fs::create_dir_all(dir.path().join("testnet.json/mine")).expect("made");
        Layout::create(dir.path(), &wish(2)).expect_err("it cannot be written");
        let names: Vec<_> =
            fs::read_dir(dir.path()).expect("listed").map(|entry| entry.expect("listed").file_name()).collect();
        assert_eq!(names, ["testnet.json"]);
    }

    #[test]
    fn a_node_that_cannot_be_added_leaves_the_network_as_it_was() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut layout = Layout::create(dir.path(), &wish(1)).expect("laid out");
        let before = layout.clone();
        let edit = Edit::parse("p2p=5").expect("an edit");
        assert!(layout.add_full_node(false, &[edit]).expect_err("refused").message.contains("p2p"));
        assert_eq!(layout, before);
        assert_eq!(Layout::read(dir.path()).expect("read"), before);
        assert!(!dir.path().join("node1").exists());
        assert_eq!(layout.add_full_node(false, &[]).expect("added").name, "node1");
    }

    /// A kill while a network is made leaves a directory that can be removed; one with anything else in it is left alone.
    #[test]
    fn what_an_unfinished_network_left_is_told_from_everything_else() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let net = dir.path().join("net");
        Layout::create(&net, &wish(2)).expect("laid out");
        fs::remove_file(Layout::file(&net)).expect("removed");
        assert_eq!(Layout::unfinished(&net), None, "nobody has held it");
        fs::write(net.join(LOCK), "").expect("written");
        let mut found = Layout::unfinished(&net).expect("all is the network's");
        found.sort();
        assert_eq!(found, [net.join("node0"), net.join("node1")]);
        for foreign in ["notes.txt", "node1/notes.txt", "node", "node99x"] {
            fs::write(net.join(foreign), "mine").expect("written");
            assert_eq!(Layout::unfinished(&net), None, "{foreign}");
            fs::remove_file(net.join(foreign)).expect("removed");
        }
        // No node was ever called so.
        for foreign in ["node+5", "node007", "node200", "node32"] {
            fs::create_dir(net.join(foreign)).expect("made");
            assert_eq!(Layout::unfinished(&net), None, "{foreign}");
            fs::remove_dir(net.join(foreign)).expect("removed");
        }
        let hint = Layout::create(&net, &wish(1)).expect_err("refused").hint.expect("what to do");
        assert!(hint.starts_with("keelstone testnet down --remove"), "{hint}");
        assert!(Layout::unfinished(&net).is_some());
        assert_eq!(Layout::unfinished(&dir.path().join("none")), None);
    }
}
