//! Who is let in, asked before any handler runs: how often an address may ask, change and administer, and what its token
//! lets it do.
//!
//! What is compared are hashes of tokens, over every token there is, with no early end: how long it takes says nothing about
//! how near a guess was. Whoever guesses wrong too often in a minute is told to wait; a token that is good is let through
//! all the same, so that nobody can be kept out by guesses made from behind the same address. A token has 256 bits of
//! the system's randomness: counting guesses keeps the log and the processor quiet, it is not what makes them hopeless.
//!
//! Roles and answers: `docs/http.md`, "Tokens".

use super::error::{ApiError, Code};
use super::routes::route;
use super::server::Connection;
use crate::config::Http;
use crate::exit::Failure;
use crate::home::Home;
use crate::metrics::Metrics;
use crate::origin::counted_as;
use crate::tokens::{self, Role};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use keelstone_codec::Hash;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Wrong tokens of one address in [`GUESSES_WINDOW`]; more are told to wait.
const GUESSES_MAX: u64 = 10;
/// How long wrong tokens are counted together.
const GUESSES_WINDOW: Duration = Duration::from_secs(60);
/// How long requests are counted together, for the limits of requests a second.
const REQUESTS_WINDOW: Duration = Duration::from_secs(1);
/// What administrators of one address may ask for in [`ADMINISTERED_WINDOW`].
const ADMINISTERED_MAX: u64 = 60;
/// How long that is counted together.
const ADMINISTERED_WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are counted each for itself in a window; all others are counted as if they were one.
const ADDRESSES_MAX: usize = 4_096;
/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 256;

/// What going to a route takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// Nothing, and is not counted: whether the node lives is everybody's to know, at any time.
    Nothing,
    /// What asking takes.
    Asking,
    /// What sending takes.
    Sending,
    /// What sending takes where that takes something, else what asking does: it is sent, and tells what the state holds.
    Either,
    /// An administrator, always.
    Administering,
}

impl Takes {
    /// Of a request that no route was found for: what is answered then is not to be told to just anybody either.
    fn unrouted(method: &Method) -> Self {
        if method == Method::GET || method == Method::HEAD { Self::Asking } else { Self::Sending }
    }
}

/// A request, as far as it matters to who is let in.
struct Asked<'a> {
    takes: Takes,
    uri: &'a Uri,
    headers: &'a HeaderMap,
    client: IpAddr,
    /// Whether nobody on the way can read along.
    private: bool,
}

/// Tokens that were read.
pub(crate) struct Roles(Vec<(Hash, Role)>);

/// Who is let in.
pub(crate) struct Access {
    home: Home,
    tokens: RwLock<Vec<(Hash, Role)>>,
    /// The token of this home's own commands.
    own: (Hash, Role),
    /// Whether asking takes a token.
    read: bool,
    /// Whether sending takes one.
    write: bool,
    /// Whether tokens are taken that everybody on the way could read.
    plain: bool,
    guesses: Mutex<Counts>,
    /// None if there is no limit.
    requests: Option<Mutex<Counts>>,
    /// Of what is sent; none if there is no limit.
    sent: Option<Mutex<Counts>>,
    administered: Mutex<Counts>,
    metrics: Arc<Metrics>,
}

impl Access {
    /// The tokens of a home, and a fresh one for its own commands.
    ///
    /// # Errors
    /// As [`tokens::load`], and if the home cannot be written to.
    pub(crate) fn open(home: &Home, config: &Http, metrics: Arc<Metrics>) -> Result<Self, Failure> {
        let kept = tokens::roles(&tokens::load(home)?);
        let own = tokens::make_own(home)?;
        let now = Instant::now();
        let limited = |limit| (limit > 0).then(|| Mutex::new(Counts::new(limit, REQUESTS_WINDOW, now)));
        Ok(Self {
            home: home.clone(),
            tokens: RwLock::new(kept),
            own,
            read: config.read_token,
            write: config.write_token,
            plain: config.plain_tokens,
            guesses: Mutex::new(Counts::new(GUESSES_MAX, GUESSES_WINDOW, now)),
            requests: limited(config.client_requests_per_second),
            sent: limited(config.client_writes_per_second),
            administered: Mutex::new(Counts::new(ADMINISTERED_MAX, ADMINISTERED_WINDOW, now)),
            metrics,
        })
    }

    /// Reads the tokens that are kept now; `settle` of them takes those alone from then on.
    ///
    /// # Errors
    /// As [`tokens::load`]; the tokens from before then hold on.
    pub(crate) fn read_again(&self) -> Result<Roles, Failure> {
        Ok(Roles(tokens::roles(&tokens::load(&self.home)?)))
    }

    /// Takes these tokens, and forgets those that are not among them. Says how many there are.
    pub(crate) fn settle(&self, Roles(kept): Roles) -> usize {
        let count = kept.len();
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = kept;
        count
    }

    /// The role that something takes, if it takes one.
    fn needs(&self, takes: Takes) -> Option<Role> {
        let (asking, sending) = (self.read.then_some(Role::Read), self.write.then_some(Role::Write));
        match takes {
            Takes::Nothing => None,
            Takes::Asking => asking,
            Takes::Sending => sending,
            Takes::Either => sending.or(asking),
            Takes::Administering => Some(Role::Admin),
        }
    }

    /// The most that a token's holder may do.
    fn role(&self, token: &str) -> Option<Role> {
        let given = tokens::hash(token);
        let mut found = None;
        let kept = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        for (hash, role) in kept.iter().chain([&self.own]) {
            let difference = hash.0.iter().zip(&given.0).fold(0, |sum, (a, b)| sum | (a ^ b));
            if std::hint::black_box(difference) == 0 {
                found = found.max(Some(*role));
            }
        }
        found
    }

    /// Says whether a request may go on, and if not, why.
    fn check(&self, asked: &Asked<'_>, now: Instant) -> Result<(), Box<Response>> {
        if tokens::stands_in(asked.uri.path_and_query().map_or("", |text| text.as_str())) {
            // Whatever it may do, it stands in logs and histories now.
            let message = "a token in the URL is known to everybody who sees a log: remove it and make another";
            return Err(Box::new(self.denied(message)));
        }
        let value = asked.headers.get(header::AUTHORIZATION);
        if value.is_some() && !asked.private && !self.plain {
            let message = "this token came over plain HTTP from another machine and may be known to others: remove it and \
                           make another, and use https, or set http.plain_tokens behind a proxy that does";
            return Err(Box::new(self.denied(message)));
        }
        if asked.takes == Takes::Nothing {
            return Ok(());
        }
        self.count(self.requests.as_ref(), asked.client, now, "too many requests from this address")?;
        if matches!(asked.takes, Takes::Sending | Takes::Either) {
            self.count(self.sent.as_ref(), asked.client, now, "too much is sent from this address")?;
        }
        let Some(needed) = self.needs(asked.takes) else { return Ok(()) };
        let Some(value) = value else {
            return Err(Box::new(self.denied("send a token as Authorization: Bearer TOKEN")));
        };
        let token = value.to_str().unwrap_or_default();
        let (scheme, token) = token.split_once(' ').unwrap_or_default();
        // RFC 9110, 11.1: the scheme is the same in any case.
        let is_token = scheme.eq_ignore_ascii_case("bearer") && token.len() <= TOKEN_BYTES_MAX;
        let token = if is_token { token } else { "" };
        let Some(role) = self.role(token) else {
            let wait = self.guesses.lock().unwrap_or_else(PoisonError::into_inner).count(asked.client, now);
            return Err(Box::new(match wait {
                None => self.denied("this token is none of this node's"),
                Some(wait) => self.later("guesses", "too many wrong tokens from this address", wait),
            }));
        };
        if role < needed {
            let message = format!("this token's role is {role}, this takes {needed}");
            return Err(Box::new(ApiError::new(Code::Forbidden, message).into_response()));
        }
        if needed == Role::Admin {
            // Counted last: whoever has no such token cannot use up what those who have one may ask for.
            self.count(
                Some(&self.administered),
                asked.client,
                now,
                "too many administrators' requests from this address",
            )?;
        }
        Ok(())
    }

    /// Counts a request of an address, if there is a limit, and tells it to wait above that.
    fn count(
        &self,
        counts: Option<&Mutex<Counts>>,
        client: IpAddr,
        now: Instant,
        message: &str,
    ) -> Result<(), Box<Response>> {
        let wait = counts.and_then(|counts| counts.lock().unwrap_or_else(PoisonError::into_inner).count(client, now));
        wait.map_or(Ok(()), |wait| Err(Box::new(self.later("rate", message, wait))))
    }

    fn denied(&self, message: &str) -> Response {
        self.metrics.refused("token");
        let challenge = HeaderValue::from_static("Bearer");
        ([(header::WWW_AUTHENTICATE, challenge)], ApiError::new(Code::Unauthorized, message)).into_response()
    }

    fn later(&self, reason: &'static str, message: &str, wait: Duration) -> Response {
        self.metrics.refused(reason);
        // Whole seconds, rounded up: whoever comes back then is not told to wait again.
        let seconds = wait.as_secs().saturating_add(1);
        ([(header::RETRY_AFTER, HeaderValue::from(seconds))], ApiError::new(Code::TooMany, message)).into_response()
    }
}

/// What addresses did in the present window of time, within bounds however many there are.
#[derive(Debug)]
struct Counts {
    max: u64,
    window: Duration,
    since: Instant,
    each: BTreeMap<IpAddr, u64>,
    /// Of the addresses for which there is no room.
    others: u64,
}

impl Counts {
    fn new(max: u64, window: Duration, now: Instant) -> Self {
        Self { max, window, since: now, each: BTreeMap::new(), others: 0 }
    }

    /// Counts one more of an address. Says how long to wait if that was too many.
    fn count(&mut self, client: IpAddr, now: Instant) -> Option<Duration> {
        let mut gone = now.saturating_duration_since(self.since);
        if gone >= self.window {
            (self.since, self.others, gone) = (now, 0, Duration::ZERO);
            self.each.clear();
        }
        let client = counted_as(client);
        let room = self.each.len() < ADDRESSES_MAX;
        let count = match self.each.get_mut(&client) {
            Some(count) => count,
            None if room => self.each.entry(client).or_default(),
            None => &mut self.others,
        };
        *count = count.saturating_add(1);
        (*count > self.max).then(|| self.window.saturating_sub(gone))
    }
}

/// Lets a request through whose address has not asked too often and whose token may do what it asks for.
pub(crate) async fn check(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let connection = request.extensions().get::<Arc<Connection>>();
    let matched = request.extensions().get::<MatchedPath>().and_then(|path| route(path.as_str()));
    let asked = Asked {
        takes: matched.map_or_else(|| Takes::unrouted(request.method()), |route| route.takes),
        uri: request.uri(),
        headers: request.headers(),
        client: connection.map_or(IpAddr::from([0, 0, 0, 0]), |connection| connection.client()),
        private: connection.is_some_and(|connection| connection.is_private()),
    };
    match access.check(&asked, Instant::now()) {
        Ok(()) => next.run(request).await,
        Err(refused) => *refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// An access with one token of each role, all of which are asked for; and the tokens' texts.
    fn access(settings: impl FnOnce(&mut Http)) -> (tempfile::TempDir, Access, [String; 3]) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(dir.path().to_owned());
        let made = [Role::Read, Role::Write, Role::Admin]
            .map(|role| tokens::create(&home, &role.to_string(), role).expect("made").to_string());
        let mut http = Http { read_token: true, write_token: true, ..Config::default().http };
        settings(&mut http);
        let access = Access::open(&home, &http, Arc::new(Metrics::new())).expect("opened");
        (dir, access, made)
    }

    /// What is answered: 200 for what may go on.
    fn status(access: &Access, call: &str, token: Option<&str>, client: IpAddr, now: Instant) -> u16 {
        answer(access, call, token, client, true, now)
    }

    fn answer(access: &Access, call: &str, token: Option<&str>, client: IpAddr, private: bool, now: Instant) -> u16 {
        let (method, path) = call.split_once(' ').expect("a method and a path");
        let mut headers = HeaderMap::new();
        if let Some(text) = token {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(text).expect("plain"));
        }
        let (method, uri): (Method, Uri) = (method.parse().expect("a method"), path.parse().expect("a path"));
        let takes = route(uri.path()).map_or_else(|| Takes::unrouted(&method), |route| route.takes);
        let asked = Asked { takes, uri: &uri, headers: &headers, client, private };
        access.check(&asked, now).map_or_else(|refused| refused.status().as_u16(), |()| 200)
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn r07_a_role_may_do_what_the_roles_below_it_may() {
        let (_dir, access, [read, write, admin]) = access(|_| ());
        let now = Instant::now();
        let answers = |call| {
            [None, Some(&read), Some(&write), Some(&admin)].map(|token| {
                let token = token.map(|token| format!("Bearer {token}"));
                status(&access, call, token.as_deref(), CLIENT, now)
            })
        };
        assert_eq!(answers("GET /healthz"), [200; 4]);
        assert_eq!(answers("GET /v1/status"), [401, 200, 200, 200]);
        assert_eq!(answers("POST /v1/transactions"), [401, 403, 200, 200]);
        assert_eq!(answers("POST /v1/admin/reload"), [401, 403, 403, 200]);
        assert_eq!(answers("GET /v1/admin/reload"), [401, 403, 403, 200]);
        let own = tokens::own(&access.home).expect("made when the node starts");
        assert_eq!(status(&access, "POST /v1/admin/reload", Some(&format!("Bearer {}", *own)), CLIENT, now), 200);
    }

    #[test]
    fn r07_an_open_node_asks_for_tokens_where_an_administrator_acts() {
        let (_dir, access, _) = access(|http| (http.read_token, http.write_token) = (false, false));
        let now = Instant::now();
        assert_eq!(status(&access, "POST /v1/transactions", None, CLIENT, now), 200);
        assert_eq!(status(&access, "POST /v1/admin/reload", None, CLIENT, now), 401);
    }

    #[test]
    fn r07_a_witness_takes_a_token_where_either_sending_or_asking_does() {
        let now = Instant::now();
        let all = [(false, false, 200, 200), (false, true, 401, 200), (true, false, 401, 403), (true, true, 401, 403)];
        let both = ["POST /v1/witness", "POST /v1/dry-run"].into_iter().flat_map(|call| all.map(|all| (call, all)));
        for (call, (sending, asking, none, reader)) in both {
            let (_dir, access, [read, write, _]) =
                access(|http| (http.write_token, http.read_token) = (sending, asking));
            let ask = |token: Option<&str>| {
                let token = token.map(|token| format!("Bearer {token}"));
                status(&access, call, token.as_deref(), CLIENT, now)
            };
            assert_eq!(
                [ask(None), ask(Some(&read)), ask(Some(&write))],
                [none, reader, 200],
                "{call} {sending} {asking}"
            );
        }
    }

    #[test]
    fn r07_a_token_in_the_url_is_refused_even_where_none_is_asked_for() {
        let (_dir, access, [read, ..]) = access(|http| http.read_token = false);
        let now = Instant::now();
        for call in [
            format!("GET /v1/status?token={read}"),
            format!("GET /v1/entries/agents?prefix={read}"),
            format!("GET /v1/transactions/{read}"),
            format!("GET /healthz?{read}"),
            "GET /v1/status?token=guess".to_owned(),
            "GET /v1/status?prove=true&access_token=guess".to_owned(),
        ] {
            assert_eq!(status(&access, &call, None, CLIENT, now), 401, "{call}");
            assert_eq!(status(&access, &call, Some(&format!("Bearer {read}")), CLIENT, now), 401, "{call}");
        }
        assert_eq!(status(&access, "GET /v1/entries/agents?prefix=ks_1&limit=1", None, CLIENT, now), 200);
    }

    #[test]
    fn r07_a_good_token_passes_whatever_others_guess() {
        let (_dir, access, [read, write, _]) = access(|_| ());
        let (now, call) = (Instant::now(), "GET /v1/status");
        for wrong in ["Bearer ks_wrong", "Bearer", &format!("Basic {read}"), &format!("Bearer  {read}"), ""] {
            assert_eq!(status(&access, call, Some(wrong), CLIENT, now), 401, "{wrong:?}");
        }
        let near = format!("Bearer {}0", &write[..write.len() - 1]);
        let near = if near.ends_with(&write) { format!("Bearer {}1", &write[..write.len() - 1]) } else { near };
        for _ in 0..20 {
            status(&access, call, Some(&near), CLIENT, now);
        }
        assert_eq!(status(&access, call, Some(&near), CLIENT, now), 429);
        assert_eq!(status(&access, call, Some(&format!("Bearer {write}")), CLIENT, now), 200);
        assert_eq!(status(&access, call, Some(&format!("bearer {write}")), CLIENT, now), 200);
        let long = format!("Bearer {}", "k".repeat(TOKEN_BYTES_MAX + 1));
        assert_eq!(status(&access, call, Some(&long), CLIENT, now + GUESSES_WINDOW), 401);
    }

    /// a million guesses from a million addresses are bounded in memory and all but a few told to wait; time is an
    /// argument, so nothing waits.
    #[test]
    fn r07_guesses_are_told_to_wait_and_remembered_within_bounds() {
        let start = Instant::now();
        let mut guesses = Counts::new(GUESSES_MAX, GUESSES_WINDOW, start);
        for _ in 0..GUESSES_MAX {
            assert_eq!(guesses.count(CLIENT, start), None);
        }
        let later = start + Duration::from_secs(20);
        assert_eq!(guesses.count(CLIENT, later), Some(Duration::from_secs(40)));
        assert_eq!(guesses.count(CLIENT, start + GUESSES_WINDOW), None, "a new window");
        let mut taken = 0;
        for number in 0..1_000_000u32 {
            taken += u64::from(guesses.count(IpAddr::from(number.to_be_bytes()), start + GUESSES_WINDOW).is_none());
        }
        assert!(guesses.each.len() <= ADDRESSES_MAX);
        assert!(taken < ADDRESSES_MAX as u64 + GUESSES_MAX, "{taken} were not told to wait");
    }

    #[test]
    fn r07_addresses_of_one_network_are_counted_together() {
        let now = Instant::now();
        let mut guesses = Counts::new(1, GUESSES_WINDOW, now);
        let client = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(guesses.count(client("2001:db8::1"), now), None);
        assert!(guesses.count(client("2001:db8::ffff:1"), now).is_some());
        assert_eq!(guesses.count(client("2001:db8:0:1::1"), now), None);
        assert_eq!(guesses.count(client("10.0.0.1"), now), None);
        assert!(guesses.count(client("::ffff:10.0.0.1"), now).is_some());
    }

    #[test]
    fn an_address_that_asks_too_often_is_told_to_wait() {
        let (_dir, access, [read, ..]) = access(|http| http.client_requests_per_second = 3);
        let (now, bearer) = (Instant::now(), format!("Bearer {read}"));
        let ask = |client, at| status(&access, "GET /v1/status", Some(&bearer), client, at);
        assert_eq!([(); 5].map(|()| ask(CLIENT, now)), [200, 200, 200, 429, 429]);
        assert_eq!(status(&access, "GET /healthz", None, CLIENT, now), 200);
        assert_eq!(ask(IpAddr::from([10, 0, 0, 1]), now), 200, "another address");
        assert_eq!(ask(CLIENT, now + REQUESTS_WINDOW), 200, "another second");
    }

    #[test]
    fn an_address_that_sends_too_much_may_go_on_asking() {
        let (_dir, access, [_, write, _]) = access(|http| http.client_writes_per_second = 2);
        let (now, bearer) = (Instant::now(), format!("Bearer {write}"));
        let ask = |call, at| status(&access, call, Some(&bearer), CLIENT, at);
        let calls = ["POST /v1/dry-run", "POST /v1/witness", "POST /v1/transactions", "POST /v1/nowhere"];
        assert_eq!(calls.map(|call| ask(call, now)), [200, 200, 429, 429]);
        assert_eq!(ask("GET /v1/status", now), 200);
        assert_eq!(ask("POST /v1/transactions", now + REQUESTS_WINDOW), 200, "another second");
    }

    #[test]
    fn r07_administrators_are_counted_and_nobody_else_uses_their_share_up() {
        let (_dir, access, [_, write, admin]) = access(|_| ());
        let now = Instant::now();
        let ask = |token: &str| status(&access, "POST /v1/admin/reload", Some(&format!("Bearer {token}")), CLIENT, now);
        for _ in 0..=ADMINISTERED_MAX {
            assert_eq!(ask(&write), 403);
        }
        for _ in 0..ADMINISTERED_MAX {
            assert_eq!(ask(&admin), 200);
        }
        assert_eq!(ask(&admin), 429);
    }

    #[test]
    fn r07_a_token_that_others_could_read_on_the_way_is_refused_unless_configured() {
        let now = Instant::now();
        for (plain, expected) in [(false, 401), (true, 200)] {
            let (_dir, access, [read, ..]) = access(|http| http.plain_tokens = plain);
            let bearer = format!("Bearer {read}");
            let ask = |call, private| answer(&access, call, Some(&bearer), CLIENT, private, now);
            assert_eq!([ask("GET /v1/status", false), ask("GET /healthz", false)], [expected; 2]);
            assert_eq!(ask("GET /v1/status", true), 200);
        }
    }

    #[test]
    fn a_reload_takes_new_tokens_and_forgets_removed_ones() {
        let (_dir, access, [read, ..]) = access(|_| ());
        let now = Instant::now();
        let fresh = tokens::create(&access.home, "fresh", Role::Read).expect("made");
        tokens::remove(&access.home, "read").expect("there");
        let ask = |token: &str| status(&access, "GET /v1/status", Some(&format!("Bearer {token}")), CLIENT, now);
        assert_eq!((ask(&read), ask(&fresh)), (200, 401));
        let kept = access.read_again().expect("read");
        assert_eq!((ask(&read), ask(&fresh)), (200, 401), "read, and not settled yet");
        assert_eq!(access.settle(kept), 3);
        assert_eq!((ask(&read), ask(&fresh)), (401, 200));
        std::fs::write(access.home.tokens(), "{").expect("written");
        assert!(access.read_again().is_err());
        assert_eq!((ask(&read), ask(&fresh)), (401, 200), "what cannot be read changes nothing");
    }
}
