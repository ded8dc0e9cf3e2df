//! Requests whose callers hang up.

use std::task::{Context, Waker};
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, Path, Query};
use axum::http::StatusCode;
use tegata_domain::session::{Cause, Event as SessionEvent, State as SessionState};
use tegata_edge::network::NetworkClasses;
use tegata_gateway::dial::TargetPolicy;
use tokio::time::{sleep, timeout};

use super::*;
use crate::adapters::sqlite::tests::Folder;
use crate::flows::tests::{PATIENCE, followups};
use crate::ports::store::contract::{Office, keiri};

fn api(office: &Office<Folder>) -> Arc<Api> {
    let followups = followups(office);
    Arc::new(Api {
        catalogue: Arc::new(Catalogue::new(office.store())),
        revocations: Arc::default(),
        acts: Acts::new(followups.tasks.clone()),
        followups,
        keys: ApiKeys::default(),
        site: Site {
            targets: TargetPolicy::new([]),
            asks_desktops: true,
            classes: Arc::new(NetworkClasses::new([]).unwrap()),
        },
    })
}

fn actor() -> Extension<Actor> {
    Extension(Actor::ApiKey("first".into()))
}

/// Sends a request and hangs up before its answer.
fn hang_up<T>(request: impl Future<Output = T>) {
    let mut request = Box::pin(request);
    let answer = request.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(answer.is_pending(), "the answer is not there yet");
}

/// Waits until something is so.
async fn until(so: impl AsyncFn() -> bool) {
    let wait = async {
        while !so().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("it becomes so");
}

#[tokio::test]
async fn a_disconnect_is_done_though_its_caller_hangs_up() {
    let mut office = Office::<Folder>::with_desktops(2).await;
    let sato = office.work("sato").await;
    let tanaka = office.work("tanaka").await;
    let api = api(&office);
    let session_ids = vec![sato.sid, tanaka.sid];
    let body = Ok(Json(sessions::These { session_ids }));
    hang_up(sessions::disconnect(State(Arc::clone(&api)), actor(), body));
    for sid in [sato.sid, tanaka.sid] {
        until(async || matches!(office.state(sid).await, SessionState::Detached { .. })).await;
    }
}

/// Sends a request and returns its status and its answer.
async fn answer(
    request: impl Future<Output = Result<Response, Problem>>,
) -> (StatusCode, serde_json::Value) {
    let response = timeout(PATIENCE, request).await.expect("an answer").into_response();
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body");
    (status, serde_json::from_slice(&body).expect("JSON"))
}

#[tokio::test]
async fn sessions_are_ended_one_by_one_or_all_of_a_person() {
    let mut office = Office::<Folder>::with_desktops(3).await;
    let sato = office.work("sato").await;
    let tanaka = office.work("tanaka").await;
    let api = api(&office);
    let unknown = tegata_proto::id::SessionId(uuid::Uuid::from_u128(7));
    let body = Ok(Json(sessions::These { session_ids: vec![sato.sid, unknown, sato.sid] }));
    let (status, said) = answer(sessions::terminate(State(Arc::clone(&api)), actor(), body)).await;
    let results: Vec<_> = (0..3).map(|at| said["items"][at]["result"].as_str()).collect();
    assert_eq!(status, StatusCode::OK);
    assert_eq!(results[..2], [Some("terminated"), Some("no_such_session")], "{said}");
    assert!(matches!(office.state(sato.sid).await, SessionState::Ended { .. }));
    assert!(matches!(office.state(tanaka.sid).await, SessionState::Active));

    let whose = |user, everyone| Ok(Json(sessions::Whose { user, everyone }));
    let all = |body| answer(sessions::terminate_all(State(Arc::clone(&api)), actor(), body));
    for neither in [whose(None, false), whose(Some("honsho/1".parse().unwrap()), true)] {
        assert_eq!(all(neither).await.0, StatusCode::BAD_REQUEST);
    }
    let (_, said) = all(whose(Some("honsho/nobody".parse().unwrap()), false)).await;
    assert_eq!(said["items"], serde_json::json!([]));
    assert!(matches!(office.state(tanaka.sid).await, SessionState::Active));
    let (_, said) = all(whose(None, true)).await;
    assert_eq!(said["items"][0]["session_id"], tanaka.sid.to_string());
    assert!(matches!(office.state(tanaka.sid).await, SessionState::Ended { .. }));
}

#[tokio::test]
async fn whoever_ends_a_session_that_is_ending_hears_of_it_when_it_is_over() {
    let mut office = Office::<Folder>::with_desktops(1).await;
    let sato = office.work("sato").await;
    // Its gateway was told, and has not said a word.
    let end = SessionEvent::EndWanted(Cause::Administrator);
    office.tell(sato.sid, end).await.unwrap();
    let (_, seq) = office.actions(0).await;
    let body = Ok(Json(sessions::These { session_ids: vec![sato.sid] }));
    let (_, said) = answer(sessions::terminate(State(api(&office)), actor(), body)).await;
    assert_eq!(said["items"][0]["result"], "terminated");
    assert!(matches!(office.state(sato.sid).await, SessionState::Ended { .. }));
    let asked = ("session.terminating".to_owned(), actor().0);
    assert_eq!(office.deeds(seq).await[0], asked);
}

#[tokio::test]
async fn a_pool_is_put_and_used_though_its_caller_hangs_up() {
    let office = Office::<Folder>::open().await;
    let api = api(&office);
    let mut raw = keiri(0);
    raw.label = "Keiri".into();
    let (name, change) = (Ok(Path(raw.name.clone())), Ok(Query(pools::Change { reason: None })));
    hang_up(pools::replace(State(Arc::clone(&api)), actor(), name, change, Ok(Json(raw))));
    until(async || api.catalogue.all().len() == 1).await;
}

#[tokio::test]
async fn a_pool_for_gateways_that_there_are_none_of_is_refused() {
    let office = Office::<Folder>::open().await;
    let mut raw = keiri(0);
    raw.gateways = "tokyo".parse().unwrap();
    let (name, change) = (Ok(Path(raw.name.clone())), Ok(Query(pools::Change { reason: None })));
    let put = pools::replace(State(api(&office)), actor(), name, change, Ok(Json(raw)));
    let (status, said) = answer(put).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{said}");
    assert_eq!(said["faults"][0]["key"], "gateways", "{said}");
}

#[tokio::test]
async fn whatever_comes_after_the_acts_have_ended_is_told_so() {
    let office = Office::<Folder>::open().await;
    let api = api(&office);
    api.followups.tasks.end(tokio::time::Instant::now() + PATIENCE).await;
    let stopping = timeout(PATIENCE, api.acts.run(async {})).await.expect("an answer");
    let status = stopping.expect_err("nothing is done any more").into_response().status();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}
