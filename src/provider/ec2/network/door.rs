//! Keeps a broker let in while its machine moves: at home, in a train, behind another network.
//!
//! Owns what is remembered between launches: the address this machine was seen with, and where it is let in.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::address::{self, AddressError};
use super::cidr::Cidr;
use super::look::look_at_groups;
use super::{NetworkError, perform};
use crate::provider::ec2::api::Api;

/// A machine seldom moves, and a launch is worth one question.
const BELIEVED_FOR: Duration = Duration::from_secs(5 * 60);

/// Lets one broker in to its builders' public addresses.
#[derive(Debug)]
pub struct Door {
    broker: String,
    /// Who is asked for our address; `None` is whoever is asked usually.
    url: Option<String>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    address: Option<(Ipv4Addr, Instant)>,
    /// Region and groups, and since when they let this address in.
    let_in: BTreeMap<(String, Vec<String>), (Ipv4Addr, Instant)>,
}

impl Door {
    /// For the broker with this id.
    pub fn new(broker: impl Into<String>) -> Self {
        Self { broker: broker.into(), url: None, known: Mutex::default() }
    }

    /// The same, with another service that says from where this machine comes.
    #[must_use]
    pub fn asking(self, url: impl Into<String>) -> Self {
        Self { url: Some(url.into()), ..self }
    }

    /// Before a launch with these groups: lets this machine in from where it is now. Does nothing for groups that a person
    /// made, and nothing twice within minutes. When this fails, a rule of before may still do.
    pub async fn let_in(&self, api: &Api, groups: &[String]) -> Result<(), NetworkError> {
        let mut known = self.known.lock().await;
        let place = (api.region().to_owned(), groups.to_vec());
        let is_fresh = |since: Instant| since.elapsed() < BELIEVED_FOR;
        if known.let_in.get(&place).is_some_and(|(_, since)| is_fresh(*since)) {
            return Ok(());
        }
        let is_ours = look_at_groups(api, groups).await?.iter().any(|group| group.is_ours);
        if !is_ours {
            return Ok(());
        }
        let address = match known.address.filter(|(_, since)| is_fresh(*since)) {
            Some((address, _)) => address,
            None => self.ask().await?,
        };
        known.address = Some((address, Instant::now()));
        perform::admit(api, groups, &self.broker, address).await?;
        known.let_in.insert(place, (address, Instant::now()));
        Ok(())
    }

    /// Somebody could not be reached: the next launch asks anew whether this machine has moved.
    pub async fn doubt(&self) {
        *self.known.lock().await = Known::default();
    }

    /// The address this machine was last seen with.
    pub async fn address(&self) -> Option<Cidr> {
        self.known.lock().await.address.map(|(address, _)| Cidr::host(address))
    }

    async fn ask(&self) -> Result<Ipv4Addr, AddressError> {
        match &self.url {
            Some(url) => address::ask(url).await,
            None => address::public_address().await,
        }
    }
}
