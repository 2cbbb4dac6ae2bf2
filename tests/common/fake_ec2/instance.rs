//! One instance, and how it changes with time.
//!
//! Owns the states with their moments: a change is planned when it is asked for, and has happened at its own time
//! however late somebody looks.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use nix_broker::model::ec2::Market;

use super::form::{Form, tag_attribute};
use super::xml;

/// Where in its life an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Pending,
    Running,
    ShuttingDown,
    Terminated,
    Stopping,
    Stopped,
}

impl State {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }

    fn code(self) -> u32 {
        match self {
            Self::Pending => 0,
            Self::Running => 16,
            Self::ShuttingDown => 32,
            Self::Terminated => 48,
            Self::Stopping => 64,
            Self::Stopped => 80,
        }
    }

    pub(super) fn document(self, name: &str) -> String {
        xml::node(name, xml::leaf("code", self.code()) + &xml::leaf("name", self.name()))
    }

    /// Whether its compute is paid for.
    pub(super) fn is_billed(self) -> bool {
        matches!(self, Self::Pending | Self::Running)
    }
}

/// An instance.
#[derive(Clone, Debug)]
pub(crate) struct FakeInstance {
    pub(crate) id: String,
    pub(crate) region: String,
    pub(crate) zone: String,
    pub(crate) vpc: String,
    pub(crate) subnet: String,
    pub(crate) instance_type: String,
    pub(crate) arch: String,
    pub(crate) image: String,
    pub(crate) market: Market,
    pub(crate) state: State,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) groups: Vec<String>,
    pub(crate) private_ip: Ipv4Addr,
    pub(crate) public_ip: Option<Ipv4Addr>,
    pub(crate) client_token: String,
    /// As the machine would read it.
    pub(crate) user_data: String,
    /// What was asked for, word for word.
    pub(crate) request: Form,
    pub(crate) launched_at: Duration,
    /// Of the last start.
    pub(crate) started_at: Duration,
    pub(crate) terminated_at: Option<Duration>,
    pub(crate) reason: Option<String>,
    /// When EC2 takes it back, if it has said so.
    pub(crate) interrupted_at: Option<Duration>,
    pub(crate) metadata_open: bool,
    pub(crate) console: String,
    /// From when to when its compute was paid for.
    pub(crate) ran: Vec<(Duration, Option<Duration>)>,
    pub(super) visible_at: Duration,
    pub(super) tags_visible_at: Duration,
    /// The next change, and when.
    pub(super) planned: Option<(Duration, State)>,
}

impl FakeInstance {
    /// What it is at this moment; returns whether it has lost its power on the way.
    pub(super) fn advance(&mut self, now: Duration, shutting_down: Duration) -> bool {
        let mut lost_power = false;
        loop {
            let taken = self.interrupted_at.filter(|at| self.state.is_billed() && *at <= now);
            let planned = self.planned.filter(|(at, _)| *at <= now);
            match (taken, planned) {
                (Some(at), planned) if planned.is_none_or(|(due, _)| at < due) => {
                    let reason = "Server.SpotInstanceTermination";
                    self.end(at, shutting_down, reason);
                    lost_power = true;
                }
                (_, Some((at, state))) => {
                    self.planned = None;
                    self.enter(state, at);
                }
                (_, None) => return lost_power,
            }
        }
    }

    /// Is in this state from then on.
    pub(super) fn enter(&mut self, state: State, at: Duration) {
        match (self.state.is_billed(), state.is_billed()) {
            (true, false) => {
                if let Some(open) = self.ran.last_mut() {
                    open.1 = Some(at);
                }
            }
            (false, true) => self.ran.push((at, None)),
            (true, true) | (false, false) => {}
        }
        if state == State::Terminated {
            self.terminated_at = Some(at);
        }
        self.state = state;
    }

    /// Goes down for good.
    pub(super) fn end(&mut self, at: Duration, shutting_down: Duration, reason: &str) {
        self.reason = Some(reason.to_owned());
        self.enter(State::ShuttingDown, at);
        self.planned = Some((at + shutting_down, State::Terminated));
    }

    /// Filterable attributes.
    pub(super) fn attribute(&self, name: &str, now: Duration) -> Option<Vec<String>> {
        let one = |value: &str| Some(vec![value.to_owned()]);
        match name {
            "instance-id" => one(&self.id),
            "instance-state-name" => one(self.state.name()),
            "instance-type" => one(&self.instance_type),
            "availability-zone" => one(&self.zone),
            "subnet-id" => one(&self.subnet),
            "vpc-id" => one(&self.vpc),
            "image-id" => one(&self.image),
            "client-token" => one(&self.client_token),
            "private-ip-address" => one(&self.private_ip.to_string()),
            "instance-lifecycle" => Some(match self.market {
                Market::Spot => vec!["spot".to_owned()],
                Market::OnDemand => Vec::new(),
            }),
            "instance.group-id" => Some(self.groups.clone()),
            _ if now < self.tags_visible_at => tag_attribute(&BTreeMap::new(), name),
            _ => tag_attribute(&self.tags, name),
        }
    }

    pub(super) fn document(&self) -> String {
        let address = self.state != State::Terminated;
        let reason = self.reason.as_ref().map(|reason| {
            let words = format!("{reason}: the instance has ended for this reason");
            xml::node("stateReason", xml::leaf("code", reason) + &xml::leaf("message", words))
        });
        [
            xml::leaf("instanceId", &self.id),
            xml::leaf("imageId", &self.image),
            self.state.document("instanceState"),
            xml::leaf("instanceType", &self.instance_type),
            xml::leaf("launchTime", xml::time(self.started_at)),
            xml::leaf("clientToken", &self.client_token),
            xml::leaf("architecture", &self.arch),
            xml::node("placement", xml::leaf("availabilityZone", &self.zone)),
            xml::leaf("reason", ""),
            reason.unwrap_or_default(),
            if address { xml::leaf("subnetId", &self.subnet) } else { String::new() },
            xml::optional("privateIpAddress", address.then_some(self.private_ip)),
            xml::optional("ipAddress", self.public_ip.filter(|_| address && self.has_power())),
            match self.market {
                Market::Spot => xml::leaf("instanceLifecycle", "spot"),
                Market::OnDemand => String::new(),
            },
            xml::list("groupSet", self.groups.iter().map(|group| xml::leaf("groupId", group))),
            xml::tags(&self.tags),
        ]
        .concat()
    }

    fn has_power(&self) -> bool {
        matches!(self.state, State::Pending | State::Running)
    }
}
