//! What every store promises, as tests that any adapter runs.
//!
//! An adapter implements [`Bench`] and calls [`contract_tests`]. The stories are
//! told on an [`Office`], whose clock moves when told.

pub(crate) mod assigning;
pub(crate) mod keeping;
pub(crate) mod places;
pub(crate) mod pools;
pub(crate) mod redeeming;
pub(crate) mod returning;
pub(crate) mod sessions;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tegata_domain::desktop::{Observation, Probe, State};
use tegata_domain::pool::terms::{Limits, Takeover};
use tegata_domain::pool::{FixedDesktop, Kind, Pool, RawPool, Reuse};
use tegata_domain::session;
use tegata_domain::time::Timestamp;
use tegata_proto::claims::{Claims, Confirmation, TICKET_LIFE_S};
use tegata_proto::encoding::{Bytes, Sha256};
use tegata_proto::id::{LinkNumber, PoolName, SessionId, TicketId, UserId};
use tegata_proto::policy::{Policy, Protocol, Security, SignOn};
use uuid::Uuid;

use super::{
    Actor, Assign, AssignError, Assigned, Carried, DesktopRecord, EventError, Followup, PoolChange,
    PutPool, PutPoolError, Redeem, RedeemError, Redeemed, SessionEvent, Store,
};
use crate::ports::signer::TokenKind;

/// A place where a store can be started, and started again.
pub(crate) trait Bench: Sized {
    /// Starts an empty store.
    async fn start() -> Self;
    /// Returns the store.
    fn store(&self) -> Arc<dyn Store>;
    /// Stops without a word, as by a cut of power, and starts anew.
    async fn reopen(self) -> Self;
}

/// Makes a test of each promise.
macro_rules! contract_tests {
    ($bench:ty) => {
        $crate::ports::store::contract::contract_tests! { $bench;
            assigning: sixty_four_people_share_ten_desktops_without_quarrel
                the_desktop_that_is_idle_longest_is_given_first
                whoever_holds_a_desktop_gets_that_one_again
                a_desktop_that_never_showed_its_certificate_is_not_given
                the_oldest_of_too_many_unused_logins_is_forgotten
                a_desktop_whose_ticket_nobody_used_is_free_again
                a_pool_that_is_not_there_is_named_as_such;
            redeeming: a_ticket_raced_by_a_hundred_opens_once
                the_same_redeem_gets_the_same_answer_while_the_session_lives
                a_ticket_of_another_epoch_opens_nothing
                a_new_login_takes_over_when_its_ticket_is_redeemed
                a_refused_ticket_changes_nothing
                a_ticket_of_an_unknown_session_is_refused;
            returning: a_grant_opens_one_link_after_the_other
                a_grant_raced_by_a_hundred_opens_one_link
                a_grant_opens_nothing_before_its_ticket_and_nothing_after_the_end
                a_link_goes_on_with_what_its_gateway_has_kept
                the_same_return_gets_the_same_answer_and_no_record
                what_is_told_of_the_link_before_changes_nothing
                a_return_to_a_silent_desktop_leaves_it_to_its_person
                a_return_that_takes_too_long_is_closed_and_leaves_the_session
                a_new_login_takes_over_from_whoever_came_back
                a_return_is_there_after_a_crash;
            places: a_pool_that_is_not_open_from_a_network_opens_no_link_from_there
                a_password_that_is_too_old_for_a_network_is_asked_for_again
                a_link_that_moves_is_judged_again_and_written_down_once
                a_connection_is_gone_on_with_only_for_what_it_was_made_for
                a_session_ends_when_its_time_is_over_and_not_before
                a_network_that_a_link_may_not_be_on_does_not_bound_its_session
                nobody_is_taken_over_where_the_pool_says_so;
            sessions: a_day_leaves_one_record_for_each_change
                the_end_of_an_older_link_changes_nothing
                a_deadline_that_passed_is_settled_even_by_a_refused_event
                what_lapsed_by_itself_is_nobodys_deed
                links_closed_on_somebodys_word_are_a_record_each
                a_clock_that_is_set_back_keeps_no_desktop
                a_clock_that_jumps_ahead_takes_no_time_from_anybody
                a_clock_that_is_set_right_again_gives_nobody_time
                a_desktop_that_cannot_be_dialled_is_quarantined
                an_answer_from_before_the_link_was_lost_frees_nothing
                a_log_off_seen_on_the_desktop_ends_a_detached_session
                what_nobody_confirmed_is_due_again
                whoever_never_came_back_is_logged_off_once_their_gateway_has_let_go
                a_log_off_is_due_until_its_holder_comes_back
                sessions_without_a_link_are_listed_in_order
                a_new_process_detaches_what_the_old_one_carried
                only_a_ticket_starts_a_session;
            pools: a_pool_is_created_then_updated_then_unchanged
                a_held_desktop_that_is_no_longer_listed_drains
                a_held_desktop_keeps_its_address_and_owner
                a_changed_certificate_needs_a_reason
                names_and_addresses_belong_to_one_pool
                free_desktops_may_swap_addresses
                an_owners_desktop_is_theirs_from_the_start
                another_grace_is_also_theirs_who_are_without_a_link
                desktops_are_probed_by_need_and_age
                a_used_desktop_is_looked_at_no_more;
            keeping: everything_acknowledged_is_there_after_a_crash
                a_caller_who_leaves_has_all_or_nothing_done
                audit_records_are_numbered_in_order
                lists_are_cut_into_pages
                the_census_counts_what_is_there
                a_person_is_known_where_they_came_from_in_the_last_thirty_days
                only_so_many_sources_of_a_person_are_kept;
        }
    };
    ($bench:ty; $($module:ident: $($promise:ident)+;)+) => {
        $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                $crate::ports::store::contract::$module::$promise::<$bench>().await;
            }
        )+)+
    };
}
pub(crate) use contract_tests;

pub(crate) const GRACE: Duration = Duration::from_hours(8);
pub(crate) const PIN: Sha256 = Sha256([7; 32]);
pub(crate) const BOOT: Uuid = Uuid::from_u128(0xb007);

/// A pool of people and desktops around a store.
pub(crate) struct Office<B> {
    pub(crate) bench: B,
    pub(crate) now: Timestamp,
    serial: u128,
}

impl<B: Bench> Office<B> {
    pub(crate) async fn open() -> Self {
        let now = Timestamp::from_millis(1_800_000_000_000);
        Self { bench: B::start().await, now, serial: 0 }
    }

    /// An office with a floating pool `keiri` of so many ready desktops.
    pub(crate) async fn with_desktops(count: u16) -> Self {
        let mut office = Self::open().await;
        office.put(keiri(count)).await.unwrap();
        office.probe_all(&"keiri".parse().unwrap()).await;
        office
    }

    pub(crate) fn store(&self) -> Arc<dyn Store> {
        self.bench.store()
    }

    pub(crate) fn wait(&mut self, span: Duration) {
        self.now = self.now.after(span);
    }

    /// A fresh id; later ones are greater.
    pub(crate) fn id(&mut self) -> Uuid {
        self.serial += 1;
        Uuid::from_u128(self.serial)
    }

    pub(crate) async fn put(&self, raw: RawPool) -> Result<PoolChange, PutPoolError> {
        self.put_because(raw, None).await
    }

    pub(crate) async fn put_because(
        &self,
        raw: RawPool,
        reason: Option<&str>,
    ) -> Result<PoolChange, PutPoolError> {
        let put = PutPool {
            pool: Pool::try_from(raw).unwrap(),
            actor: Actor::ApiKey("first".into()),
            reason: reason.map(Into::into),
            only_if_absent: false,
            now: self.now,
        };
        self.store().put_pool(put).await
    }

    /// Every desktop of the pool answers a probe, a millisecond apart.
    pub(crate) async fn probe_all(&mut self, pool: &PoolName) {
        for record in self.desktops(pool).await {
            self.wait(Duration::from_millis(1));
            let found = Some(Probe::Answered(Some(PIN)));
            self.store().probed(record.id, found, self.now).await.unwrap();
        }
    }

    pub(crate) async fn desktops(&self, pool: &PoolName) -> Vec<DesktopRecord> {
        self.store().desktops(pool, None, 1_000).await.unwrap()
    }

    /// The only desktop of `keiri`.
    pub(crate) async fn desktop(&self) -> DesktopRecord {
        let mut records = self.desktops(&"keiri".parse().unwrap()).await;
        assert_eq!(records.len(), 1);
        records.remove(0)
    }

    pub(crate) fn wish(&mut self, name: &str) -> Assign {
        Assign {
            sid: SessionId(self.id()),
            user: user(name),
            display_name: name.to_uppercase(),
            account: Some(name.into()),
            unit: Some("kanbo".into()),
            pool: "keiri".parse().unwrap(),
            class: "office".into(),
            source: "192.0.2.1/32".into(),
            device: None,
            txn: "5eed".into(),
            password_at: self.now,
            now: self.now,
        }
    }

    pub(crate) async fn login(&mut self, name: &str) -> Result<Login, AssignError> {
        let wish = self.wish(name);
        let sid = wish.sid;
        let assigned = self.store().assign(wish).await?;
        Ok(Login { sid, user: user(name), jti: TicketId(self.id()), assigned })
    }

    pub(crate) fn claims(&self, login: &Login) -> Claims {
        let now = self.now.as_secs();
        Claims {
            iss: "tegata".into(),
            aud: "default".parse().unwrap(),
            sub: login.user.clone(),
            sid: login.sid,
            epoch: login.assigned.epoch,
            jti: login.jti,
            iat: now,
            exp: now + TICKET_LIFE_S,
            cnf: Confirmation { jkt: Bytes([1; 32]) },
        }
    }

    pub(crate) fn redeem_of(&self, login: &Login) -> Redeem {
        Redeem {
            kind: TokenKind::Ticket,
            claims: self.claims(login),
            resume: None,
            link: LinkNumber::FIRST,
            exporter: Sha256([3; 32]),
            gateway: "gw-1".parse().unwrap(),
            boot: BOOT,
            class: "telework".into(),
            now: self.now,
        }
    }

    /// The grant that came with a login, at a gateway.
    pub(crate) fn grant_of(&self, login: &Login, link: u64) -> Redeem {
        let mut redeem = self.redeem_of(login);
        redeem.kind = TokenKind::Resume;
        redeem.claims.exp = redeem.claims.iat + GRACE.as_secs();
        redeem.link = LinkNumber(link);
        redeem
    }

    pub(crate) async fn come_back(
        &self,
        login: &Login,
        link: u64,
    ) -> Result<Redeemed, RedeemError> {
        self.store().redeem(self.grant_of(login, link)).await
    }

    pub(crate) async fn redeem(&self, login: &Login) -> Result<Redeemed, RedeemError> {
        self.store().redeem(self.redeem_of(login)).await
    }

    pub(crate) async fn tell(
        &self,
        sid: SessionId,
        event: session::Event,
    ) -> Result<Vec<Followup>, EventError> {
        self.tell_of_link(sid, event, None).await
    }

    pub(crate) async fn tell_of_link(
        &self,
        sid: SessionId,
        event: session::Event,
        link: Option<LinkNumber>,
    ) -> Result<Vec<Followup>, EventError> {
        let carried =
            Carried { up: 1, down: u64::MAX, last_byte_at: self.now, input_minutes: Some(2) };
        let carried = Some(carried);
        let event = SessionEvent { sid, event, link, carried, actor: Actor::Broker, now: self.now };
        self.store().session_event(event).await
    }

    /// An administrator has something done to a session.
    pub(crate) async fn order(
        &self,
        sid: SessionId,
        event: session::Event,
    ) -> Result<Vec<Followup>, EventError> {
        let (link, carried, actor) = (None, None, Actor::ApiKey("first".into()));
        let event = SessionEvent { sid, event, link, carried, actor, now: self.now };
        self.store().session_event(event).await
    }

    /// Logs in, redeems and attaches.
    pub(crate) async fn work(&mut self, name: &str) -> Login {
        let login = self.login(name).await.unwrap();
        self.redeem(&login).await.unwrap();
        self.tell(login.sid, session::Event::Attached).await.unwrap();
        login
    }

    /// The only desktop of `keiri` answers a probe.
    pub(crate) async fn probe(&self) -> Vec<Followup> {
        let (desktop, found) = (self.desktop().await.id, Some(Probe::Answered(Some(PIN))));
        self.store().probed(desktop, found, self.now).await.unwrap()
    }

    pub(crate) async fn state(&self, sid: SessionId) -> session::State {
        self.store().session(sid).await.unwrap().unwrap().state
    }

    pub(crate) async fn observe(&self, accounts: &[&str], asked: Timestamp) -> Vec<Followup> {
        let logged_on: BTreeSet<_> = accounts.iter().map(ToString::to_string).collect();
        let desktop = self.desktop().await.id;
        let observation = Observation { logged_on, asked };
        self.store().observed(desktop, observation, self.now).await.unwrap()
    }

    /// The actions that were audited after a number, and the last number.
    pub(crate) async fn actions(&self, after: i64) -> (Vec<String>, i64) {
        let records = self.store().audit_after(after, 10_000).await.unwrap();
        let last = records.last().map_or(after, |(seq, _)| *seq);
        (records.into_iter().map(|(_, record)| record.action).collect(), last)
    }

    /// Who did what after a number.
    pub(crate) async fn deeds(&self, after: i64) -> Vec<(String, Actor)> {
        let records = self.store().audit_after(after, 10_000).await.unwrap();
        records.into_iter().map(|(_, record)| (record.action, record.actor)).collect()
    }

    pub(crate) async fn is_ready(&self) -> bool {
        matches!(self.desktop().await.desktop.state, State::Ready { .. })
    }
}

/// Somebody who got a desktop, and their ticket's id.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    pub(crate) sid: SessionId,
    pub(crate) user: UserId,
    pub(crate) jti: TicketId,
    pub(crate) assigned: Assigned,
}

pub(crate) fn user(name: &str) -> UserId {
    format!("honsho/{name}").parse().unwrap()
}

pub(crate) fn listed(pool: &str, n: u16) -> FixedDesktop {
    let [high, low] = n.to_be_bytes();
    FixedDesktop {
        name: format!("{pool}-{n:04}").parse().unwrap(),
        address: format!("10.0.{high}.{low}:3389").parse().unwrap(),
        certificate_sha256: None,
        owner: None,
    }
}

/// A floating RDP pool whose desktops are reused after log-off.
pub(crate) fn keiri(count: u16) -> RawPool {
    RawPool {
        name: "keiri".parse().unwrap(),
        label: "経理".into(),
        kind: Kind::Floating,
        reuse: Reuse::AfterLogoff,
        protocol: Protocol::Rdp,
        security: Some(Security::Tls),
        sign_on: SignOn::Prompt,
        policy: Policy::default(),
        limits: Limits::default(),
        by_class: vec![],
        takeover: Takeover::Allow,
        entitlements: vec![],
        gateways: "default".parse().unwrap(),
        hold_ms: 180_000,
        grace_ms: u64::try_from(GRACE.as_millis()).unwrap(),
        queue_wait_ms: 1,
        queue_limit: 1,
        desktops: (1..=count).map(|n| listed("keiri", n)).collect(),
    }
}

pub(crate) fn dedicated(owner: &str) -> RawPool {
    let mut raw = keiri(2);
    raw.kind = Kind::Dedicated;
    raw.desktops[0].owner = Some(user(owner));
    raw
}
