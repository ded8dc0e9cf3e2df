//! The administrator's side: the operations port.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::wait;

/// The operations port of a broker.
pub struct Api {
    base: String,
    key: String,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

/// An answer: status and body, `null` where it is no JSON.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The JSON body.
    pub body: Value,
}

impl Api {
    pub(crate) fn new(operations: SocketAddr, key: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = reqwest::Client::builder()
            .no_proxy()
            // The port ends idle connections after seconds; a kept one may be gone when it is used.
            .pool_max_idle_per_host(0)
            .timeout(wait::LIMIT)
            .build()?;
        Ok(Self { base: format!("http://{operations}"), key: key.to_owned(), client, runtime })
    }

    /// Returns the same port with another key.
    #[must_use]
    pub fn with_key(mut self, key: &str) -> Self {
        key.clone_into(&mut self.key);
        self
    }

    /// Asks.
    ///
    /// # Errors
    ///
    /// When nobody answers.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.send(self.client.get(format!("{}{path}", self.base)))
    }

    /// Sends a whole.
    ///
    /// # Errors
    ///
    /// When nobody answers.
    pub fn put(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(self.client.put(format!("{}{path}", self.base)).json(body))
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    ///
    /// When nobody answers.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(self.client.post(format!("{}{path}", self.base)).json(body))
    }

    /// Returns the text of `/metrics`.
    ///
    /// # Errors
    ///
    /// When nobody answers.
    pub fn metrics(&self) -> Result<String> {
        let url = format!("{}/metrics", self.base);
        Ok(self.runtime.block_on(async { self.client.get(url).send().await?.text().await })?)
    }

    /// Tells whether the broker says that it is ready.
    pub fn is_ready(&self) -> bool {
        self.get("/readyz").is_ok_and(|answer| answer.status == 200)
    }

    /// Returns a pool's desktops.
    ///
    /// # Errors
    ///
    /// When the answer is no list.
    pub fn desktops(&self, pool: &str) -> Result<Vec<Value>> {
        items(&self.get(&format!("/v1/desktops?pool={pool}"))?)
    }

    /// Returns the sessions that are not over.
    ///
    /// # Errors
    ///
    /// When the answer is no list.
    pub fn sessions(&self) -> Result<Vec<Value>> {
        items(&self.get("/v1/sessions")?)
    }

    /// Returns all sessions that are not over, page by page.
    ///
    /// # Errors
    ///
    /// When an answer is no list.
    pub fn all_sessions(&self) -> Result<Vec<Value>> {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("/v1/sessions?limit=1000{cursor}"))?;
            all.extend(items(&page)?);
            let Some(next) = page.body["next"].as_str() else { return Ok(all) };
            cursor = format!("&cursor={next}");
        }
    }

    /// Waits until so many of a pool's desktops are in a state.
    ///
    /// # Errors
    ///
    /// When they are not in time.
    pub fn wait_for_desktops(&self, pool: &str, state: &str, count: usize) -> Result<()> {
        let mut seen = Vec::new();
        wait::until(&format!("{count} desktops of {pool} to be {state}"), || {
            seen = self.desktops(pool)?;
            let there = seen.iter().filter(|desktop| desktop["state"] == state).count();
            Ok((there == count).then_some(()))
        })
        .with_context(|| format!("{seen:?}"))
    }

    fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer> {
        self.runtime.block_on(async {
            let response = request.bearer_auth(&self.key).send().await?;
            let status = response.status().as_u16();
            let body = serde_json::from_str(&response.text().await?).unwrap_or(Value::Null);
            Ok(Answer { status, body })
        })
    }
}

fn items(answer: &Answer) -> Result<Vec<Value>> {
    let list = answer.body["items"].as_array().cloned();
    list.with_context(|| format!("{} {}", answer.status, answer.body))
}
