//! Machines that the user already has: handed out one by one, and taken back.
//!
//! Owns who has which host, so that at most one builder is on each. The machines themselves are their owner's: nothing
//! is started or ended there.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Address, Launched, ProviderError, ProviderErrorKind};
use crate::model::{HostSpec, Instance, InstanceId, PoolName};

/// The hosts of one pool.
#[derive(Debug)]
pub struct Hosts {
    hosts: Vec<HostSpec>,
    /// For each host in use, by its position: for which pool.
    in_use: Mutex<BTreeMap<usize, PoolName>>,
}

impl Hosts {
    /// These hosts, none of them in use.
    pub fn new(hosts: Vec<HostSpec>) -> Self {
        Self { hosts, in_use: Mutex::default() }
    }

    /// Hands out the first free host, in the order of the configuration.
    pub fn launch(&self, pool: &PoolName) -> Result<Launched, ProviderError> {
        let mut in_use = self.in_use();
        let free = self.hosts.iter().enumerate().find(|(index, _)| !in_use.contains_key(index));
        let Some((index, host)) = free else {
            let reason = format!("all {} hosts of pool `{pool}` are in use", self.hosts.len());
            return Err(ProviderError::new(ProviderErrorKind::Capacity, reason));
        };
        in_use.insert(index, pool.clone());
        Ok(Launched {
            instance: Instance { id: id(host), pool: pool.clone() },
            address: Address {
                host: host.address.clone(),
                port: host.port,
                user: host.user.clone(),
                host_keys: host.host_keys.clone(),
                identity_file: host.identity_file.clone(),
            },
        })
    }

    /// Takes a host back.
    pub fn terminate(&self, instance: &InstanceId) {
        self.in_use().retain(|&index, _| id(&self.hosts[index]) != *instance);
    }

    /// The hosts in use.
    pub fn list(&self) -> Vec<Instance> {
        let in_use = self.in_use();
        in_use
            .iter()
            .map(|(&index, pool)| Instance { id: id(&self.hosts[index]), pool: pool.clone() })
            .collect()
    }

    fn in_use(&self) -> MutexGuard<'_, BTreeMap<usize, PoolName>> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a person would call it. Two entries for one address and port are refused by the configuration.
fn id(host: &HostSpec) -> InstanceId {
    match host.port {
        22 => InstanceId::new(host.address.as_str()),
        port if host.address.contains(':') => InstanceId::new(format!("[{}]:{port}", host.address)),
        port => InstanceId::new(format!("{}:{port}", host.address)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(address: &str, port: u16) -> HostSpec {
        HostSpec {
            address: address.into(),
            port,
            user: "nix".into(),
            host_keys: vec!["ssh-ed25519 AAAA".into()],
            identity_file: None,
        }
    }

    #[test]
    fn a_host_has_one_builder_at_a_time_and_is_free_again_after_it() {
        let hosts = Hosts::new(vec![host("a", 22), host("a", 2222), host("fe80::1", 2222)]);
        let pool = PoolName::new("p");
        let ids: Vec<_> = (0..3).map(|_| hosts.launch(&pool).unwrap().instance.id).collect();
        assert_eq!(ids.iter().map(InstanceId::as_str).collect::<Vec<_>>(), ["a", "a:2222", "[fe80::1]:2222"]);
        assert_eq!(hosts.launch(&pool).unwrap_err().kind, ProviderErrorKind::Capacity);
        assert_eq!(hosts.list().len(), 3);

        hosts.terminate(&ids[1]);
        hosts.terminate(&ids[1]);
        hosts.terminate(&InstanceId::new("unheard of"));
        assert_eq!(hosts.list().len(), 2);
        let again = hosts.launch(&pool).unwrap();
        assert_eq!(again.instance.id, ids[1]);
        assert_eq!((again.address.host.as_str(), again.address.port), ("a", 2222));
    }
}
