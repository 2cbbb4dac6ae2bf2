//! Machines that the user already has: handed out one by one, and taken back.
//!
//! Owns who has which host, so that at most one builder is on each. The machines themselves are their owner's: nothing
//! is started or ended there.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::{Address, Callers, Inner, Launched, ProviderError, ProviderErrorKind};
use crate::model::{HostSpec, Instance, InstanceId, PoolName};

/// The hosts of one pool.
#[derive(Debug)]
pub struct Hosts {
    hosts: Vec<HostSpec>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The positions of all hosts, in the order in which they are handed out.
    line: Vec<usize>,
    /// For each host in use, by its position: for which pool.
    in_use: BTreeMap<usize, PoolName>,
}

impl Hosts {
    /// These hosts, none of them in use.
    pub fn new(hosts: Vec<HostSpec>) -> Self {
        let state = State { line: (0..hosts.len()).collect(), in_use: BTreeMap::new() };
        Self { hosts, state: Mutex::new(state) }
    }

    /// Hands out the first free host: in the order of the configuration, those that failed last.
    pub fn launch(&self, pool: &PoolName) -> Result<Launched, ProviderError> {
        let mut state = self.state.lock();
        let free = state.line.iter().copied().find(|index| !state.in_use.contains_key(index));
        let Some((index, host)) = free.and_then(|index| Some((index, self.hosts.get(index)?))) else {
            let reason = format!("all {} hosts of pool `{pool}` are in use", self.hosts.len());
            return Err(ProviderError::new(ProviderErrorKind::Capacity, reason));
        };
        state.in_use.insert(index, pool.clone());
        Ok(Launched {
            instance: Instance { id: id(host), pool: pool.clone(), class: None },
            address: Address {
                host: host.address.clone(),
                inner: Some(Inner {
                    host: host.address.clone(),
                    network: None,
                    zone: None,
                    callers: Callers::All,
                }),
                port: host.port,
                user: host.user.clone(),
                host_keys: host.host_keys.clone(),
                identity_file: host.identity_file.clone(),
                proxy_command: None,
            },
        })
    }

    /// Takes a host back.
    pub fn terminate(&self, instance: &InstanceId) {
        self.state.lock().in_use.retain(|&index, _| id(&self.hosts[index]) != *instance);
    }

    /// Puts a host behind all others: the next launch shall not meet the same fault while another host is free.
    pub fn distrust(&self, instance: &InstanceId) {
        self.state.lock().line.sort_by_key(|&index| id(&self.hosts[index]) == *instance);
    }

    /// The hosts in use.
    pub fn list(&self) -> Vec<Instance> {
        let state = self.state.lock();
        let in_use = state.in_use.iter();
        in_use
            .map(|(&index, pool)| Instance { id: id(&self.hosts[index]), pool: pool.clone(), class: None })
            .collect()
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

    #[test]
    fn a_host_that_failed_is_handed_out_after_all_others() {
        let hosts = Hosts::new(vec![host("a", 22), host("b", 22), host("c", 22)]);
        let pool = PoolName::new("p");
        let next = || {
            let instance = hosts.launch(&pool).unwrap().instance.id;
            hosts.terminate(&instance);
            instance.as_str().to_owned()
        };
        assert_eq!(next(), "a");
        hosts.distrust(&InstanceId::new("a"));
        assert_eq!(next(), "b");
        hosts.distrust(&InstanceId::new("b"));
        assert_eq!(next(), "c");
        hosts.distrust(&InstanceId::new("c"));
        assert_eq!(next(), "a");
    }
}
