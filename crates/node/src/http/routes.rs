//! The routes, their handlers, and the document that describes them.

use super::access::{self, Access, Takes};
use super::error::{ApiError, Code, ErrorBody};
use super::events::{Hub, Refused};
use super::limits::{Limits, cross_origin, guard};
use super::parameters::{Parameters, parsed, read_parameters};
use super::reload::Reload;
use super::server::Connection;
use super::stream::{Listening, Past};
use super::taking::{Crowded, Room, bound};
use crate::abci;
use crate::api::{self, AuditWanted, By, Chain, Page, Refusal, SessionsWanted, decimal};
use crate::application::Application;
use crate::bundle::named;
use crate::cometbft::rpc::Rpc;
use crate::engine::Engine;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::out::NAME;
use crate::p2p::{SILENT, Seen, Standing};
use crate::snapshots::Service;
use crate::strict_json;
use crate::telling::{EventPlace, Id};
use crate::world;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, MatchedPath, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::Stream;
use keelstone_codec::{Hash, Height, Namespace, unhex};
use keelstone_execution::{PublicKey, SessionId};
use keelstone_sync::snapshot::FORMAT;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder};
use utoipa::{Modify, OpenApi, ToSchema};

/// What a node says of itself once a write has failed.
const WRITE_FAILED: &str = "a write failed: nothing is committed until the node restarts";

/// What handlers work with.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) chain: Arc<dyn Engine>,
    /// The program: what its types say of the bytes of the state.
    pub(crate) application: Arc<Application>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) access: Arc<Access>,
    pub(crate) reload: Arc<Reload>,
    pub(crate) health: Arc<Health>,
    /// None on a node that makes no snapshots.
    pub(crate) snapshots: Option<Arc<Service>>,
    /// None on a node that follows nobody.
    pub(crate) following: Option<Seen>,
    /// None on a node whose blocks no engine makes.
    pub(crate) attached: Option<Attached>,
    /// Blocks by which it may be behind and be of use.
    pub(crate) behind_max: u64,
}

/// The engine that makes a node's blocks.
#[derive(Clone)]
pub(crate) struct Attached {
    /// What it calls.
    pub(crate) application: Arc<abci::Application>,
    /// Where it is asked.
    pub(crate) rpc: Rpc,
    /// Where it connects.
    pub(crate) address: String,
}

impl Health {
    /// Why nothing is committed any more, once a write has failed.
    fn write_failed(&self) -> Option<ApiError> {
        let has_failed = self.failed.load(Ordering::Relaxed);
        has_failed
            .then(|| ApiError::new(Code::WriteFailed, WRITE_FAILED).hint("look at the disk, and restart the node"))
    }
}

/// The table of routes: the router, the document, the labels of metrics and what a route takes all come from it.
///
/// Those `for people` are not in the document. Those `open` answer for as long as somebody listens, the others within the
/// time a request may take.
macro_rules! routes {
    (
        for people { $($plain_path:literal $plain:ident;)+ }
        answered { $($path:literal $method:ident $handler:ident $takes:ident [$($parameter:literal),*];)+ }
        open { $($open_path:literal $open:ident [$($open_parameter:literal),*];)+ }
    ) => {
        /// Every route.
        const ROUTES: &[Route] = &[
            $(Route { path: $plain_path, takes: Takes::Asking, timed: true, parameters: &[] },)+
            $(Route { path: $path, takes: Takes::$takes, timed: true, parameters: &[$($parameter),*] },)+
            $(Route { path: $open_path, takes: Takes::Asking, timed: false, parameters: &[$($open_parameter),*] },)+
        ];

        fn answered() -> Router<Served> {
            Router::new()$(.route($plain_path, get($plain)))+$(.route($path, $method($handler)))+
        }

        fn open() -> Router<Served> {
            Router::new()$(.route($open_path, get($open)))+
        }

        /// The document that describes this API.
        #[derive(OpenApi)]
        #[openapi(
            info(title = "Keelstone node", license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")),
            paths($($handler,)+ $($open,)+),
            modifiers(&InCommon)
        )]
        struct Document;
    };
}

routes! {
    for people {
        "/" index;
        "/openapi.json" openapi;
    }
    answered {
        "/v1/status" get status Asking [];
        "/v1/functions" get functions Asking [];
        "/v1/places" get places Asking [];
        "/v1/transactions" post submit Sending [];
        "/v1/transactions/{id}" get transaction Asking [];
        "/v1/receipts/{id}" get receipt Asking [];
        "/v1/blocks/{height}" get block Asking [];
        "/v1/accounts/{key}" get account Asking [];
        "/v1/sessions" get sessions Asking ["of", "below", "after", "limit"];
        "/v1/sessions/{id}" get session Asking [];
        "/v1/bundles" get bundles Asking [];
        "/v1/bundles/{id}" get bundle Asking [];
        "/v1/bundles/{id}/operations/{index}" get operation_proof Asking ["block", "transaction"];
        "/v1/witness" post witness Either [];
        "/v1/dry-run" post dry_run Either [];
        "/v1/state/{namespace}" get entry Asking ["place", "key", "key_hex", "height", "prove"];
        "/v1/entries/{namespace}" get entries Asking ["place", "prefix", "prefix_hex", "after", "after_hex", "limit", "height", "prove"];
        "/v1/lookup/{index}" get lookup Asking ["of", "after_hex", "limit"];
        "/v1/history/{namespace}" get history Asking ["place", "key", "key_hex", "from", "to", "limit"];
        "/v1/audit" get audit Asking ["from", "height", "kind", "who", "limit"];
        "/v1/audit/{index}" get audit_record Asking [];
        "/v1/audit-log" get audit_log Asking ["since"];
        "/v1/snapshots" get snapshots Asking [];
        "/v1/snapshots/{height}/chunks/{index}" get chunk Asking [];
        "/v1/admin/reload" post reload Administering [];
        "/healthz" get healthz Nothing [];
        "/readyz" get readyz Nothing [];
        "/metrics" get metrics Asking [];
    }
    open {
        "/v1/events" events ["from"];
    }
}

/// One route.
pub(super) struct Route {
    /// Its pattern, and its label in the metrics: one of a fixed list, so that series cannot be added from outside.
    path: &'static str,
    /// What going there takes.
    pub(super) takes: Takes,
    /// Whether it answers within the time a request may take.
    timed: bool,
    /// The parameters that may stand behind `?`.
    pub(super) parameters: &'static [&'static str],
}

/// The route of a pattern that was matched.
pub(super) fn route(pattern: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|route| route.path == pattern)
}

/// The name of tokens in the document.
const TOKEN: &str = "token";

/// What the document says of all routes: that there are tokens, and what any request may be answered before its handler runs.
struct InCommon;

impl Modify for InCommon {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("Of the role that it takes"));
        components.add_security_scheme(TOKEN, SecurityScheme::Http(bearer.build()));
        for (path, item) in &mut document.paths.paths {
            let route = route(path);
            for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
                describe(operation, route);
            }
        }
    }
}

fn describe(operation: &mut Operation, route: Option<&Route>) {
    let (takes, timed) = route.map_or((Takes::Asking, true), |route| (route.takes, route.timed));
    let token = SecurityRequirement::new(TOKEN, std::iter::empty::<String>());
    operation.security = match takes {
        Takes::Nothing => None,
        Takes::Administering => Some(vec![token]),
        // As the node is configured.
        Takes::Asking | Takes::Sending | Takes::Either => Some(vec![SecurityRequirement::default(), token]),
    };
    let (counted, always) = (takes != Takes::Nothing, true);
    let said = [
        ("400", always, "The request does not say what it must"),
        ("401", always, "It takes a token; or one stands in the URL, or came over plain HTTP"),
        ("403", counted, "Not with this token"),
        ("413", always, "The body is larger than it may be"),
        ("415", always, "The body is of a kind that is not taken, or packed"),
        ("429", counted, "Too many requests, or too many wrong tokens: wait as long as `Retry-After` says"),
        ("500", always, "The machine of this node failed, or stored bytes that the answer takes are damaged"),
        ("503", always, "As much as may is being done or answered"),
        ("504", timed, "It took too long"),
        ("default", always, "Any other failure, such as 405 for another method"),
    ];
    for (status, can_be, description) in said {
        if can_be {
            let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
            let response = ResponseBuilder::new().description(description).content("application/json", body);
            operation.responses.responses.entry(status.to_owned()).or_insert_with(|| response.build().into());
        }
    }
}

/// Bytes as they are.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "it is there to be described")]
struct Raw(Vec<u8>);

/// The API as a router.
pub(crate) fn router(served: Served) -> Router {
    let answered = answered().layer(from_fn_with_state(served.limits.request_timeout, deadline));
    let room = Arc::new(Room::new(served.limits.answers_bytes_max, served.metrics.clone()));
    answered
        .merge(open())
        .fallback(|| async { ApiError::new(Code::NotFound, "there is no such path; / lists what there is") })
        .method_not_allowed_fallback(|| async { ApiError::new(Code::MethodNotAllowed, "not with this method") })
        .layer(DefaultBodyLimit::max(served.limits.body_bytes_max))
        .layer(from_fn(read_parameters))
        .layer(from_fn_with_state(served.access.clone(), access::check))
        .layer(from_fn_with_state(served.limits.clone(), guard))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(room, bound))
        .layer(from_fn_with_state(served.limits.clone(), cross_origin))
        .layer(from_fn_with_state(served.metrics.clone(), count))
        .layer(from_fn(harden))
        .with_state(served)
}

/// Counts every answer under the pattern of its route.
async fn count(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let matched = request.extensions().get::<MatchedPath>().and_then(|path| route(path.as_str()));
    let label = matched.map_or("none", |route| route.path);
    let response = next.run(request).await;
    metrics.answered(label, response.status().as_u16(), started.elapsed());
    response
}

/// A request as a whole has a deadline until there is an answer; how long that may take to be taken is bounded as well
/// ([`super::taking`]).
async fn deadline(State(limit): State<Duration>, request: Request, next: Next) -> Result<Response, ApiError> {
    tokio::time::timeout(limit, next.run(request))
        .await
        .map_err(|_| ApiError::new(Code::Timeout, format!("the request took more than {} ms", limit.as_millis())))
}

/// Headers that keep browsers from reading an answer as anything but what it is.
async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(header::HeaderValue::from_static("no-store"));
    response
}

/// A handler that panics is a bug of this program; the connection and the node live on.
fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    tracing::error!("a request handler panicked");
    met_a_bug().into_response()
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Bad(_) => Self::new(Code::BadRequest, message),
            Refusal::Forbidden { hint, .. } => {
                let error = Self::new(Code::Forbidden, message);
                hint.into_iter().fold(error, Self::hint)
            }
            Refusal::TooMany { .. } => Self::new(Code::TooMany, message),
            Refusal::NotFound(_) => Self::new(Code::NotFound, message),
            Refusal::Waiting(_) => Self::new(Code::Waiting, message),
            Refusal::Height { asked, lowest, highest } => {
                let code = if asked < lowest { Code::Gone } else { Code::NotFound };
                Self::new(code, message).heights(lowest, highest)
            }
            Refusal::NoBlock { lowest, highest, .. } => Self::new(Code::NotFound, message).heights(lowest, highest),
            Refusal::Refused { .. } => Self::new(Code::Refused, message),
            Refusal::Follows(made_by) => made_by.into(),
            Refusal::Busy(_) => Self::new(Code::Busy, message),
            Refusal::Damaged(_) => Self::new(Code::Damaged, message),
            Refusal::Failed(_) => Self::new(Code::Internal, message),
        }
    }
}

type Answer<T> = Result<Json<T>, ApiError>;

/// A bug of this program, of which the log says more.
fn met_a_bug() -> ApiError {
    ApiError::new(Code::Internal, "this request met a bug; the node goes on")
}

/// So much is done at once of what may block, of each kind. It goes on when whoever asked has gone away, so what waits for its turn
/// has to wait here, where it goes with its connection. The runtime has eight times as many threads for such.
const AT_ONCE_MAX: usize = 64;
/// Questions to the chain.
pub(super) static ASKING: Semaphore = Semaphore::const_new(AT_ONCE_MAX);
/// Transactions, which may have to wait for an engine that stands still.
static SENDING: Semaphore = Semaphore::const_new(AT_ONCE_MAX);
/// Chunks of snapshots, few of which are read at once: whoever waits for one keeps no question waiting.
static FETCHING: Semaphore = Semaphore::const_new(AT_ONCE_MAX);

/// Runs something where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "what a request asks for panicked");
        met_a_bug()
    })
}

/// As [`blocking`], in its turn.
pub(super) async fn in_turn<T: Send + 'static>(
    turns: &'static Semaphore,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    // Nobody closes it.
    let turn = turns.acquire().await.map_err(|_| met_a_bug())?;
    blocking(move || {
        let done = work();
        drop(turn);
        done
    })
    .await
}

/// Asks the chain, which may read the store.
async fn ask<T: Send + 'static>(
    served: &Served,
    question: impl FnOnce(&dyn Chain) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, ApiError> {
    let chain = served.chain.clone();
    Ok(in_turn(&ASKING, move || question(&*chain)).await??)
}

/// What this API offers, for whoever opens it in a browser.
async fn index(State(served): State<Served>) -> Json<serde_json::Value> {
    let paths: Vec<&str> = ROUTES.iter().map(|route| route.path).collect();
    let version = env!("CARGO_PKG_VERSION");
    let mut shown = serde_json::json!({ "name": NAME, "version": version, "paths": paths });
    if let Some(own) = served.application.named() {
        shown["application"] = serde_json::json!(own);
    }
    Json(shown)
}

/// Where the chain stands.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = api::Status)))]
async fn status(State(served): State<Served>) -> Answer<api::Status> {
    let mut status = ask(&served, |chain| chain.status()).await?;
    status.application = served.application.named();
    status.snapshots = served.snapshots.as_ref().map(|service| api::SnapshotFigures::of(&service.listed()));
    status.failed = served.health.failed.load(Ordering::Relaxed).then(|| WRITE_FAILED.to_owned());
    status.following = served.following.as_ref().map(|seen| api::FollowFigures::of(seen, status.height));
    Ok(Json(status))
}

/// The snapshots this node offers, and the one it is making.
#[utoipa::path(get, path = "/v1/snapshots", responses((status = 200, body = api::Snapshots)))]
async fn snapshots(State(served): State<Served>) -> Json<api::Snapshots> {
    Json(served.snapshots.as_ref().map(|service| service.report()).unwrap_or_default())
}

/// One chunk of a snapshot, as it is sent: to be proven by whoever asked.
#[utoipa::path(
    get, path = "/v1/snapshots/{height}/chunks/{index}", params(("height" = u64, Path), ("index" = u32, Path)),
    responses(
        (status = 200, body = Raw, content_type = "application/octet-stream"),
        (status = 404, body = ErrorBody, description = "There is no such chunk here"),
    )
)]
async fn chunk(
    State(served): State<Served>,
    Path((height, index)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let height: u64 = parsed("height", &height, decimal)?;
    let index: u32 = parsed("index", &index, decimal)?;
    let none = || ApiError::new(Code::NotFound, format!("no chunk {index} of a snapshot of height {height}"));
    let service = served.snapshots.clone().ok_or_else(none)?;
    let bytes = in_turn(&FETCHING, move || service.chunk(height, FORMAT, index)).await??;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

/// What can be called, with the form of arguments and results.
#[utoipa::path(get, path = "/v1/functions", responses((status = 200, body = Vec<api::Function>)))]
async fn functions(State(served): State<Served>) -> Answer<Vec<api::Function>> {
    ask(&served, |chain| chain.functions()).await.map(Json)
}

/// The places of the state that this program knows, with the form of keys and values.
#[utoipa::path(get, path = "/v1/places", responses((status = 200, body = Vec<api::Place>)))]
async fn places(State(served): State<Served>) -> Json<Vec<api::Place>> {
    Json(world::places(&served.application.registry))
}

/// The media type of a transaction in hexadecimal.
pub(super) const JSON: &str = "application/json";
/// That of its bytes as they are, which takes half as many.
pub(super) const OCTETS: &str = "application/octet-stream";

/// What the body is said to be, which is the same in any case (RFC 9110, 8.3.1).
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// A transaction to be taken in.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SubmitBody {
    /// The encoded transaction in hexadecimal.
    transaction: String,
}

/// Takes in a signed transaction: JSON with hexadecimal, or the bytes as they are.
#[utoipa::path(
    post, path = "/v1/transactions",
    request_body(content((SubmitBody = "application/json"), (Raw = "application/octet-stream"))),
    responses(
        (status = 202, body = api::Submitted),
        (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 421, body = ErrorBody, description = "This node follows: `producer` says who makes the blocks"),
        (status = 422, body = ErrorBody, description = "The rules of the chain refuse it"),
        (status = 503, body = ErrorBody, description = "`busy`: as many wait as may. `write_failed`: there will be no block"),
    )
)]
async fn submit(
    State(served): State<Served>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<api::Submitted>), ApiError> {
    let transaction = sent(&served, &headers, body)?;
    if let Some(failed) = served.health.write_failed() {
        // It would wait for a block that never comes.
        return Err(failed);
    }
    let chain = served.chain.clone();
    let submitted = in_turn(&SENDING, move || chain.submit(&transaction)).await;
    let submitted = submitted.and_then(|submitted| Ok(submitted?));
    match &submitted {
        // An engine has had it checked here, and it was counted then.
        Ok(_) if served.attached.is_some() => {}
        Ok(_) => served.metrics.transaction("accepted"),
        Err(_) => served.metrics.transaction("refused"),
    }
    Ok((StatusCode::ACCEPTED, Json(submitted?)))
}

/// The bytes of a transaction that was sent, in either form.
fn sent(served: &Served, headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Vec<u8>, ApiError> {
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => served.limits.too_large(headers),
        _ if Crowded::is_cause_of(&error) => {
            served.metrics.refused("bodies");
            ApiError::new(Code::Busy, Crowded.to_string()).hint("send it again in a moment")
        }
        _ => ApiError::new(Code::BadRequest, "the body could not be read"),
    })?;
    match media_type(headers).as_str() {
        OCTETS => Ok(body.to_vec()),
        JSON => {
            let body: SubmitBody = strict_json::parse_object(&body)?;
            parsed("transaction", &body.transaction, |digits| unhex(digits))
        }
        _ => {
            let message = format!("send {JSON} or {OCTETS}");
            Err(ApiError::new(Code::UnsupportedMedia, message))
        }
    }
}

/// What it takes to run a transaction with no store at hand: a proof of all it reads and writes in the last state. It need
/// not be signed; nothing is taken in. One is made at a time.
#[utoipa::path(
    post, path = "/v1/witness",
    request_body(content((SubmitBody = "application/json"), (Raw = "application/octet-stream"))),
    responses(
        (status = 200, body = api::Witness),
        (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 503, body = ErrorBody, description = "Another one is being made, or is of a function that does not end"),
    )
)]
async fn witness(
    State(served): State<Served>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer<api::Witness> {
    let transaction = asked_about(&served, &headers, body)?;
    ask(&served, move |chain| chain.witness(&transaction)).await.map(Json)
}

/// What a transaction would come to if it came now, alone in the next block: its receipt, and how much it would change. It need
/// not be signed; nothing is taken in. One is run at a time, and no witness is made meanwhile.
#[utoipa::path(
    post, path = "/v1/dry-run",
    request_body(content((SubmitBody = "application/json"), (Raw = "application/octet-stream"))),
    responses(
        (status = 200, body = api::DryRun, description = "Also of a bundle that would fail: `receipt.failure` says why"),
        (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "It would be refused, with the code that whoever sends it gets"),
        (status = 503, body = ErrorBody, description = "Another one is being run, or is of a function that does not end"),
    )
)]
async fn dry_run(
    State(served): State<Served>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer<api::DryRun> {
    let transaction = asked_about(&served, &headers, body)?;
    ask(&served, move |chain| chain.dry_run(&transaction)).await.map(Json)
}

/// The bytes of a transaction that is to be run for a question; nothing is while a function of one does not end.
fn asked_about(served: &Served, headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Vec<u8>, ApiError> {
    let transaction = sent(served, headers, body)?;
    let Some(why) = served.health.endless() else { return Ok(transaction) };
    let hint = "whoever runs this node may start it again; the function's developer has to act (execution.watchdog_ms)";
    Err(ApiError::new(Code::Busy, why).hint(hint))
}

/// A transaction and what became of it.
#[utoipa::path(
    get, path = "/v1/transactions/{id}", params(("id" = String, Path)),
    responses(
        (status = 200, body = api::Transaction),
        (status = 404, body = ErrorBody, description = "`waiting`: it is in no block yet. `not_found`: it is not known here"),
        (status = 503, body = ErrorBody, description = "`write_failed`: it waits, and there will be no block"),
    )
)]
async fn transaction(State(served): State<Served>, Path(id): Path<String>) -> Answer<api::Transaction> {
    settled(&served, &id).await.map(Json)
}

/// A transaction; of one that waits for a block that never comes, that it does.
async fn settled(served: &Served, id: &str) -> Result<api::Transaction, ApiError> {
    let id = parsed("id", id, Hash::from_hex)?;
    let found = ask(served, move |chain| chain.transaction(&id)).await;
    found.map_err(|error| served.health.write_failed().filter(|_| error.is(Code::Waiting)).unwrap_or(error))
}

/// What became of a transaction.
#[utoipa::path(
    get, path = "/v1/receipts/{id}", params(("id" = String, Path)),
    responses(
        (status = 200, body = api::Receipt), (status = 404, body = ErrorBody),
        (status = 503, body = ErrorBody, description = "`write_failed`: the transaction waits, and there will be no block"),
    )
)]
async fn receipt(State(served): State<Served>, Path(id): Path<String>) -> Answer<api::Receipt> {
    settled(&served, &id).await.map(|transaction| Json(transaction.receipt))
}

/// A block by height, or the last one as `latest`.
#[utoipa::path(
    get, path = "/v1/blocks/{height}", params(("height" = String, Path)),
    responses((status = 200, body = api::Block), (status = 404, body = ErrorBody), (status = 410, body = ErrorBody))
)]
async fn block(State(served): State<Served>, Path(height): Path<String>) -> Answer<api::Block> {
    let height = match height.as_str() {
        "latest" => None,
        text => Some(Height(parsed("height", text, decimal)?)),
    };
    ask(&served, move |chain| chain.block(height)).await.map(Json)
}

/// What an account needs to know to send its next transaction.
#[utoipa::path(
    get, path = "/v1/accounts/{key}", params(("key" = String, Path)), responses((status = 200, body = api::Account))
)]
async fn account(State(served): State<Served>, Path(key): Path<String>) -> Answer<api::Account> {
    let key = parsed("key", &key, PublicKey::from_hex)?;
    ask(&served, move |chain| chain.account(&key)).await.map(Json)
}

/// Sessions: those with a name below the root session of the key `of`, in the order of their paths, or all in that of their
/// identities. A page at a time.
#[utoipa::path(
    get, path = "/v1/sessions",
    params(
        ("of" = Option<String>, Query), ("below" = Option<String>, Query), ("after" = Option<String>, Query),
        ("limit" = Option<usize>, Query),
    ),
    responses((status = 200, body = api::SessionList), (status = 400, body = ErrorBody))
)]
async fn sessions(
    State(served): State<Served>,
    Extension(parameters): Extension<Parameters>,
) -> Answer<api::SessionList> {
    let text = |name| parameters.get(name).map(str::to_owned);
    let wanted = SessionsWanted {
        of: parameters.get("of").map(|text| parsed("of", text, PublicKey::from_hex)).transpose()?,
        below: text("below"),
        after: text("after"),
        limit: parameters.limit()?,
    };
    ask(&served, move |chain| chain.sessions(&wanted)).await.map(Json)
}

/// A session, and whether and what it may do in the next block.
#[utoipa::path(
    get, path = "/v1/sessions/{id}", params(("id" = String, Path)),
    responses((status = 200, body = api::Session), (status = 404, body = ErrorBody))
)]
async fn session(State(served): State<Served>, Path(id): Path<String>) -> Answer<api::Session> {
    let id = parsed("id", &id, SessionId::from_hex)?;
    ask(&served, move |chain| chain.session(&id)).await.map(Json)
}

/// The async bundles in flight.
#[utoipa::path(get, path = "/v1/bundles", responses((status = 200, body = Vec<api::BundleStatus>)))]
async fn bundles(State(served): State<Served>) -> Answer<Vec<api::BundleStatus>> {
    ask(&served, |chain| chain.bundles()).await.map(Json)
}

/// Where an async bundle stands, also one that ended.
#[utoipa::path(
    get, path = "/v1/bundles/{id}", params(("id" = String, Path)),
    responses((status = 200, body = api::BundleStatus), (status = 404, body = ErrorBody))
)]
async fn bundle(State(served): State<Served>, Path(id): Path<String>) -> Answer<api::BundleStatus> {
    let id = parsed("id", &id, Hash::from_hex)?;
    ask(&served, move |chain| chain.bundle(&id)).await.map(Json)
}

/// That an operation of a bundle took effect, sync or async: proven in the last state without the rest of the bundle. With `block`,
/// of what the chain did in that block by itself: its `id` is `begin_block` or `end_block`. With `transaction`, of what it did around
/// that: `before_transaction` or `after_transaction`.
#[utoipa::path(
    get, path = "/v1/bundles/{id}/operations/{index}",
    params(
        ("id" = String, Path),
        ("index" = u32, Path),
        ("block" = Option<u64>, Query),
        ("transaction" = Option<String>, Query),
    ),
    responses((status = 200, body = api::OperationAnswer), (status = 404, body = ErrorBody))
)]
async fn operation_proof(
    State(served): State<Served>,
    Path((id, index)): Path<(String, String)>,
    Extension(parameters): Extension<Parameters>,
) -> Answer<api::OperationAnswer> {
    let (id, index) = (parsed("id", &id, named)?, parsed("index", &index, decimal)?);
    let block = parameters.height("block")?;
    let transaction = parameters.get("transaction").map(|id| parsed("transaction", id, Hash::from_hex)).transpose()?;
    let at = match (block, transaction) {
        (Some(_), Some(_)) => {
            return Err(ApiError::new(Code::BadRequest, "a block or a transaction, not both".to_owned()));
        }
        (block, transaction) => block.map(api::HookAt::Block).or(transaction.map(api::HookAt::Transaction)),
    };
    ask(&served, move |chain| chain.operation_proof(&id, index, at)).await.map(Json)
}

/// One entry of the state, with a proof if asked for. A missing entry is an answer, and can be proven too. With `place`, `key` is
/// written as arguments are, the parts of a pair with a comma between; else it is all bytes of the key.
#[utoipa::path(
    get, path = "/v1/state/{namespace}",
    params(
        ("namespace" = String, Path), ("place" = Option<String>, Query), ("key" = Option<String>, Query),
        ("key_hex" = Option<String>, Query), ("height" = Option<u64>, Query), ("prove" = Option<bool>, Query),
    ),
    responses(
        (status = 200, body = api::Entry), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "The height is not reached yet, or there is no such place"),
        (status = 410, body = ErrorBody, description = "The height is no longer kept"),
    )
)]
async fn entry(
    State(served): State<Served>,
    Path(namespace): Path<String>,
    Extension(parameters): Extension<Parameters>,
) -> Answer<api::Entry> {
    let namespace = parsed("namespace", &namespace, Namespace::new)?;
    let key = parameters.key(&served.application.registry, &namespace)?;
    let (height, prove) = (parameters.height("height")?, parameters.flag("prove")?);
    ask(&served, move |chain| chain.entry(&namespace, &key, height, prove)).await.map(Json)
}

/// Entries of a namespace in the order of their keys, a page at a time; with `prove`, that they are all of those keys. With `place`
/// those of it alone, also as `rows` by field, and `prefix` is the first parts of their keys.
#[utoipa::path(
    get, path = "/v1/entries/{namespace}",
    params(
        ("namespace" = String, Path), ("place" = Option<String>, Query), ("prefix" = Option<String>, Query),
        ("prefix_hex" = Option<String>, Query),
        ("after" = Option<String>, Query), ("after_hex" = Option<String>, Query), ("limit" = Option<usize>, Query),
        ("height" = Option<u64>, Query), ("prove" = Option<bool>, Query),
    ),
    responses(
        (status = 200, body = api::Entries), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "There is no such place"),
    )
)]
async fn entries(
    State(served): State<Served>,
    Path(namespace): Path<String>,
    Extension(parameters): Extension<Parameters>,
) -> Answer<api::Entries> {
    let namespace = parsed("namespace", &namespace, Namespace::new)?;
    let limit = parameters.limit()?;
    let (application, place) = (served.application.clone(), parameters.get("place").map(str::to_owned));
    let prefix = match &place {
        Some(_) if parameters.get("prefix_hex").is_some() => {
            return Err(ApiError::new(Code::BadRequest, "prefix_hex is bytes of a key: leave place out"));
        }
        Some(place) => {
            world::asked_beginning(&application.registry, namespace.as_str(), place, parameters.get("prefix"))?
        }
        None => parameters.bytes("prefix", "prefix_hex")?.unwrap_or_default(),
    };
    let page = Page { prefix, after: parameters.bytes("after", "after_hex")?, limit };
    let (height, prove) = (parameters.height("height")?, parameters.flag("prove")?);
    ask(&served, move |chain| {
        let mut found = chain.entries(&namespace, &page, height, prove)?;
        if let Some(place) = place {
            let rows = world::rows(&application.registry, namespace.as_str(), &place, &found);
            found.rows = Some(rows.map_err(|error| Refusal::Failed(error.to_string()))?);
        }
        Ok(found)
    })
    .await
    .map(Json)
}

/// Entries of the last state by something else than their key: agents by `name`, memes by `author`, alliances by
/// `member`, relationships by the `other` they are about. A page at a time.
#[utoipa::path(
    get, path = "/v1/lookup/{index}",
    params(
        ("index" = String, Path), ("of" = String, Query), ("after_hex" = Option<String>, Query),
        ("limit" = Option<usize>, Query),
    ),
    responses(
        (status = 200, body = api::Entries), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "The program lacks the module whose entries these are"),
    )
)]
async fn lookup(
    State(served): State<Served>,
    Path(index): Path<String>,
    Extension(parameters): Extension<Parameters>,
) -> Answer<api::Entries> {
    let by = parsed("index", &index, str::parse::<By>)?;
    by.check(&served.application.registry)?;
    let of = parameters.get("of").ok_or_else(|| ApiError::new(Code::BadRequest, "say of what: of=…"))?.to_owned();
    let page = Page { prefix: Vec::new(), after: parameters.bytes("after", "after_hex")?, limit: parameters.limit()? };
    ask(&served, move |chain| chain.lookup(by, &of, &page)).await.map(Json)
}

/// What an entry held over time: each change with the operations that made it, and a proof. A page at a time, and at most
/// 10,000 heights.
#[utoipa::path(
    get, path = "/v1/history/{namespace}",
    params(
        ("namespace" = String, Path), ("place" = Option<String>, Query), ("key" = Option<String>, Query),
        ("key_hex" = Option<String>, Query), ("from" = Option<u64>, Query), ("to" = Option<u64>, Query), ("limit" = Option<usize>, Query),
    ),
    responses(
        (status = 200, body = api::History), (status = 400, body = ErrorBody),
        (status = 410, body = ErrorBody, description = "The height is no longer kept"),
    )
)]
async fn history(
    State(served): State<Served>,
    Path(namespace): Path<String>,
    Extension(parameters): Extension<Parameters>,
) -> Answer<api::History> {
    let namespace = parsed("namespace", &namespace, Namespace::new)?;
    let key = parameters.key(&served.application.registry, &namespace)?;
    let heights = (parameters.height("from")?, parameters.height("to")?);
    let limit = parameters.limit()?;
    ask(&served, move |chain| chain.history(&namespace, &key, heights, limit)).await.map(Json)
}

/// Records of the audit log from a place on, of a height, of a kind, of a key. A page at a time, and at most 100,000 records
/// looked at.
#[utoipa::path(
    get, path = "/v1/audit",
    params(
        ("from" = Option<u64>, Query), ("height" = Option<u64>, Query), ("kind" = Option<String>, Query),
        ("who" = Option<String>, Query), ("limit" = Option<usize>, Query),
    ),
    responses(
        (status = 200, body = api::Audit), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "The record is not kept here"),
    )
)]
async fn audit(State(served): State<Served>, Extension(parameters): Extension<Parameters>) -> Answer<api::Audit> {
    let wanted = AuditWanted {
        from: parameters.number("from")?,
        height: parameters.height("height")?,
        kind: parameters.get("kind").map(str::to_owned),
        who: parameters.get("who").map(|text| parsed("who", text, PublicKey::from_hex)).transpose()?,
        limit: parameters.limit()?,
    };
    ask(&served, move |chain| chain.audit(&wanted)).await.map(Json)
}

/// One record of the audit log, with the proof that it is in the log of the last state.
#[utoipa::path(
    get, path = "/v1/audit/{index}", params(("index" = u64, Path)),
    responses((status = 200, body = api::AuditAnswer), (status = 404, body = ErrorBody))
)]
async fn audit_record(State(served): State<Served>, Path(index): Path<String>) -> Answer<api::AuditAnswer> {
    let index: u64 = parsed("index", &index, decimal)?;
    ask(&served, move |chain| chain.audit_proof(index)).await.map(Json)
}

/// Where the audit log stands, and the proof that it goes on from its first `since` records.
#[utoipa::path(
    get, path = "/v1/audit-log", params(("since" = Option<u64>, Query)),
    responses((status = 200, body = api::AuditCheckpoint), (status = 404, body = ErrorBody))
)]
async fn audit_log(
    State(served): State<Served>,
    Extension(parameters): Extension<Parameters>,
) -> Answer<api::AuditCheckpoint> {
    let since = parameters.number("since")?;
    ask(&served, move |chain| chain.audit_checkpoint(since)).await.map(Json)
}

/// Events as they happen: `block`, `transaction`, `continuation` and `damage`, as server-sent events. With `Last-Event-ID`, or else
/// from a height on, those that happened since come first.
#[utoipa::path(
    get, path = "/v1/events",
    params(("from" = Option<u64>, Query), ("Last-Event-ID" = Option<String>, Header)),
    responses(
        (status = 200, body = String, content_type = "text/event-stream"),
        (status = 404, body = ErrorBody, description = "The height is not reached yet"),
        (status = 410, body = ErrorBody, description = "The block is no longer kept"),
        (status = 503, body = ErrorBody),
    )
)]
async fn events(
    State(served): State<Served>,
    Extension(parameters): Extension<Parameters>,
    Extension(connection): Extension<Arc<Connection>>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, ApiError> {
    // The one of a reader that comes back stands over where it once began.
    let from = match headers.get("last-event-id") {
        // As a stream leaves it that could not be taken up again.
        Some(last) if last.is_empty() => None,
        Some(last) => Some(parsed("Last-Event-ID", last.to_str().unwrap_or_default(), EventPlace::from_str)?.next()),
        None => parameters.height("from")?.map(EventPlace::first_of),
    };
    let subscription = served.hub.subscribe(connection, &served.limits, from.is_some()).map_err(|refused| {
        served.metrics.refused("subscriptions");
        ApiError::new(
            Code::Busy,
            match refused {
                Refused::Full(limit) => format!("there are {limit} event streams already"),
                Refused::ClientFull(limit) => format!("this client has {limit} event streams already"),
                Refused::Stopping => "the node is stopping".to_owned(),
            },
        )
    })?;
    let mut listening = Listening { served, subscription, past: None };
    if let Some(mut next) = from {
        // What cannot be had is said while there is a status to say it with, also if it is the height behind the one that
        // a reader has read whole.
        let mut read = listening.read(next, None).await?;
        if read.as_ref().is_some_and(|(events, _)| events.is_empty()) {
            next = EventPlace::first_of(next.height.next());
            read = listening.read(next, None).await?;
        }
        let (read, held) = read.unwrap_or_default();
        listening.past = Some(Past { next, read: read.into_iter(), held });
    }
    let stream = futures_util::stream::unfold(listening, |mut listening| async move {
        let event = listening.next().await?;
        let told = SseEvent::default().event(event.kind).data(&*event.json);
        let told = match event.id {
            Id::At(place) => told.id(place.to_string()),
            // A browser says no id then when it comes back.
            Id::Nothing => told.id(""),
            Id::AsBefore => told,
        };
        Some((Ok(told), listening))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

/// Reads the file of tokens and the certificate again: what is new is taken and what was removed no longer. Takes a token
/// of an administrator.
#[utoipa::path(
    post, path = "/v1/admin/reload",
    responses(
        (status = 200, body = api::Reloaded), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 500, body = ErrorBody, description = "They cannot be read, or api.json not be written; those from before hold on"),
    )
)]
async fn reload(State(served): State<Served>) -> Answer<api::Reloaded> {
    let reload = served.reload.clone();
    let reloaded = blocking(move || reload.all()).await?;
    reloaded.map(Json).map_err(|failure| ApiError::new(Code::Internal, failure.message))
}

/// Whether the process is sound: 200, or 503 once a write has failed or stored bytes were found damaged. While a function that
/// somebody asked about does not end it says so, and is 200: nobody may end a node by asking.
#[utoipa::path(
    get, path = "/healthz",
    responses((status = 200, body = String, content_type = "text/plain"), (status = 503, body = ErrorBody))
)]
async fn healthz(State(served): State<Served>) -> Result<String, ApiError> {
    let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
    if let Some(failed) = served.health.write_failed() {
        return Err(failed);
    }
    let program = &served.application.name;
    match is(&served.health.damaged) {
        false => Ok(served.health.endless().map_or("ok\n".to_owned(), |why| format!("ok, but {why}\n"))),
        true if is(&served.health.mends_no_more) => Err(ApiError::new(
            Code::Busy,
            format!(
                "stored bytes are damaged, and after so many repairs no more are made for now: {program} check status says more"
            ),
        )),
        true => Err(ApiError::new(
            Code::Busy,
            format!("stored bytes are damaged: {program} check --full names them, --repair mends what can be proven"),
        )),
    }
}

/// Whether this node does its work, or on one that follows whether it can keep up: 200, or 503 while stopping, once a write has
/// failed, while the state is known to be damaged, while no peer has the next height, before the first word of a producer that
/// counts and while there are only others, or while it is more than p2p.follow_behind_max blocks behind; under CometBFT also while
/// that is not connected, or has not given it the first block that its peers have.
#[utoipa::path(
    get, path = "/readyz",
    responses((status = 200, body = String, content_type = "text/plain"), (status = 503, body = ErrorBody))
)]
async fn readyz(State(served): State<Served>) -> Result<String, ApiError> {
    if served.health.stopping.load(Ordering::Relaxed) {
        return Err(ApiError::new(Code::Busy, "the node is stopping"));
    }
    if served.health.inconsistent.load(Ordering::Relaxed) {
        return Err(ApiError::new(Code::Busy, "the state here is damaged or not the certified one"));
    }
    if let Some(what) = served.following.as_ref().and_then(|seen| falls_behind(&seen.standing(), served.behind_max)) {
        return Err(ApiError::new(Code::Busy, what));
    }
    if let Some(attached) = served.attached.clone() {
        let Attached { application, rpc, address } = attached;
        if let Some(why) = blocking(move || application.is_not_ready(&address, || rpc.peers_height())).await? {
            return Err(ApiError::new(Code::Busy, why));
        }
    }
    healthz(State(served)).await
}

/// Why a node that follows is not as far as it should be, if it is not.
fn falls_behind(standing: &Standing, behind_max: u64) -> Option<String> {
    let Standing { gap, certified, behind, refused, silent_for, .. } = standing;
    let refused = refused.as_ref().map_or_else(String::new, |why| format!("; the last word was refused: {why}"));
    if certified.is_none() {
        return Some(format!("nobody has certified a height to this node since it started{refused}"));
    }
    // Whoever says nothing takes nobody out of service: but where words come and none counts, it may be this node.
    if let Some(silent) = silent_for.filter(|silent| *silent >= SILENT) {
        return Some(format!("no word of a producer was taken for {} s{refused}", silent.as_secs()));
    }
    if let Some((missing, from)) = gap {
        return Some(format!("no peer has height {missing} any more, what they have begins at {from}"));
    }
    let certified = certified.filter(|_| *behind > behind_max)?;
    Some(format!("this node is {behind} blocks behind certified height {certified}"))
}

/// What the node counts, for Prometheus.
#[utoipa::path(
    get, path = "/metrics", responses((status = 200, body = String, content_type = "application/openmetrics-text"))
)]
async fn metrics(State(served): State<Served>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], served.metrics.render())
}

async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_document_describes_the_routes_of_the_table_under_their_paths_and_methods() {
        let document = serde_json::to_value(Document::openapi()).expect("a document");
        let described: BTreeSet<&str> =
            document["paths"].as_object().expect("paths").keys().map(String::as_str).collect();
        let for_people = ["/", "/openapi.json"];
        let routes = ROUTES.iter().map(|route| route.path).filter(|path| !for_people.contains(path));
        assert_eq!(described, routes.collect());
    }

    /// A client made from the document knows of tokens, and of what may come instead of an answer.
    #[test]
    fn the_document_says_what_every_route_may_answer() {
        let document = serde_json::to_value(Document::openapi()).expect("a document");
        assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");
        for Route { path, takes, timed, .. } in
            ROUTES.iter().filter(|route| !matches!(route.path, "/" | "/openapi.json"))
        {
            for (method, operation) in document["paths"][path].as_object().expect("a path") {
                let says = |status: &str| operation["responses"].get(status).is_some();
                assert!(["400", "401", "415", "500", "default"].into_iter().all(says), "{method} {path}");
                assert_eq!(says("429"), *takes != Takes::Nothing, "{method} {path}");
                assert_eq!(says("504"), *timed, "{method} {path}");
                assert_eq!(operation.get("security").is_some(), *takes != Takes::Nothing, "{method} {path}");
            }
        }
    }

    #[test]
    fn the_document_names_the_parameters_that_are_read() {
        let document = serde_json::to_value(Document::openapi()).expect("a document");
        for Route { path, parameters, .. } in ROUTES {
            let described = document["paths"][path]["get"]["parameters"].as_array().cloned().unwrap_or_default();
            let in_query = described.iter().filter(|parameter| parameter["in"] == "query");
            let described: BTreeSet<&str> = in_query.filter_map(|parameter| parameter["name"].as_str()).collect();
            assert_eq!(described, parameters.iter().copied().collect(), "{path}");
        }
    }

    #[test]
    fn a_node_that_follows_is_ready_unless_it_falls_behind_or_has_a_gap() {
        let mut standing = Standing::default();
        let what = falls_behind(&standing, 0).expect("nobody has certified anything yet");
        assert!(what.contains("nobody has certified") && !what.contains("refused"), "{what}");
        standing.refused = Some("it is of tomorrow".to_owned());
        let what = falls_behind(&standing, 0).expect("nobody has certified anything yet");
        assert!(what.contains("it is of tomorrow"), "{what}");
        (standing.certified, standing.behind) = (Some(Height(70)), 50);
        assert_eq!(falls_behind(&standing, 50), None);
        standing.behind = 51;
        let what = falls_behind(&standing, 50).expect("one too many");
        assert!(what.contains("51 blocks behind certified height 70"), "{what}");
        (standing.gap, standing.behind) = (Some((Height(3), Height(9))), 0);
        let what = falls_behind(&standing, 50).expect("a gap");
        assert!(what.contains("height 3 any more"), "{what}");
        (standing.gap, standing.silent_for) = (None, Some(SILENT / 2));
        assert_eq!(falls_behind(&standing, 50), None, "one that was refused may be somebody's fault alone");
        standing.silent_for = Some(SILENT);
        let what = falls_behind(&standing, 50).expect("all were refused");
        assert!(what.contains("for 300 s; the last word was refused: it is of tomorrow"), "{what}");
    }

    /// What changes something takes more than asking does, and what an administrator does is nobody else's.
    #[test]
    fn r07_a_route_takes_what_its_method_and_place_say() {
        let document = serde_json::to_value(Document::openapi()).expect("a document");
        for Route { path, takes, .. } in ROUTES {
            let posts = document["paths"][path].get("post").is_some();
            assert_eq!(matches!(takes, Takes::Sending | Takes::Either | Takes::Administering), posts, "{path}");
            assert_eq!(matches!(takes, Takes::Administering), path.starts_with("/v1/admin/"), "{path}");
        }
    }
}
