//! EventBridge Scheduler, as far as it ends instances: one-time schedules of the default group.
//!
//! Owns those schedules, and does what they say when their time has come. Takes nothing but an end of instances.

use std::time::{Duration, SystemTime};

use nix_broker::provider::ec2::api::{WireRequest, WireResponse};
use serde_json::{Value, json};

use super::account::Account;
use super::form::Form;
use super::instance::State;
use super::{EPOCH, FakeEc2, Refusal, images};

/// A request to the scheduler, as its path has it.
pub(super) struct Order<'a> {
    pub(super) action: &'static str,
    name: &'a str,
}

/// What AWS is to do by itself.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub(crate) at: Duration,
    pub(crate) instance: String,
    pub(crate) role: String,
    token: String,
}

/// What AWS did by itself.
#[derive(Clone, Debug)]
pub(crate) struct Fired {
    pub(crate) instance: String,
    /// In which state it found it.
    pub(crate) state: State,
}

/// What this request asks of the scheduler; `None` is a request to somebody else.
pub(super) fn to_scheduler(target: &str) -> Option<Order<'_>> {
    let (method, path) = target.split_once(' ')?;
    let name = path.split('?').next()?.strip_prefix("/schedules/")?;
    let action = match method {
        "POST" => "CreateSchedule",
        "PUT" => "UpdateSchedule",
        "DELETE" => "DeleteSchedule",
        _ => return None,
    };
    Some(Order { action, name })
}

/// What is asked for, as faults and tests look at it.
pub(super) fn form_of(order: &Order<'_>) -> Form {
    Form::of(&[("Name", order.name)])
}

fn read(body: &[u8]) -> Option<Schedule> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let target = &body["Target"];
    let is_right = body["FlexibleTimeWindow"]["Mode"] == "OFF"
        && body["ActionAfterCompletion"] == "DELETE"
        && target["Arn"] == "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances";
    let at = body["ScheduleExpression"].as_str()?.strip_prefix("at(")?.strip_suffix(')')?;
    let at = humantime::parse_rfc3339_weak(at).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let input: Value = serde_json::from_str(target["Input"].as_str()?).ok()?;
    is_right.then_some(Schedule {
        at: at.checked_sub(Duration::from_secs(EPOCH as u64))?,
        instance: input["InstanceIds"][0].as_str()?.to_owned(),
        role: target["RoleArn"].as_str()?.to_owned(),
        token: body["ClientToken"].as_str()?.to_owned(),
    })
}

impl FakeEc2 {
    /// What AWS is to do by itself, by name.
    pub(crate) fn schedules(&self) -> Vec<Schedule> {
        self.with_account(|account, _| account.schedules.values().cloned().collect())
    }

    /// Instances that ever had a schedule.
    pub(crate) fn ever_scheduled(&self) -> std::collections::BTreeSet<String> {
        self.with_account(|account, _| account.ever_scheduled.clone())
    }

    /// What AWS did by itself.
    pub(crate) fn fired(&self) -> Vec<Fired> {
        self.with_account(|account, _| account.fired.clone())
    }

    /// A request to the scheduler.
    pub(super) fn act_scheduler(&self, request: &WireRequest, order: &Order<'_>) -> (WireResponse, String) {
        let answer = self.with_account(|account, now| {
            self.faults(|faults| faults.permission(order.action))?;
            self.faults(|faults| faults.bucket(order.action, now))?;
            account.scheduler(order, &request.body)
        });
        match answer {
            Ok(body) => {
                let body = body.to_string().into_bytes();
                (WireResponse { status: 200, body }, "ok".to_owned())
            }
            Err(refusal) => (images::refused(&refusal), refusal.code),
        }
    }
}

impl Account {
    fn scheduler(&mut self, order: &Order<'_>, body: &[u8]) -> Result<Value, Refusal> {
        let known = self.schedules.get(order.name);
        let gone = || Refusal::new(404, "ResourceNotFoundException", "Schedule does not exist.");
        if order.action == "DeleteSchedule" {
            return self.schedules.remove(order.name).map(|_| json!({})).ok_or_else(gone);
        }
        let wanted =
            read(body).ok_or_else(|| Refusal::new(400, "ValidationException", "Invalid schedule."))?;
        match (order.action, known) {
            ("CreateSchedule", Some(known)) if known.token != wanted.token => {
                return Err(Refusal::new(409, "ConflictException", "Schedule already exists."));
            }
            ("UpdateSchedule", None) => return Err(gone()),
            _ => {}
        }
        self.ever_scheduled.insert(wanted.instance.clone());
        self.schedules.insert(order.name.to_owned(), wanted);
        Ok(json!({ "ScheduleArn": format!("arn:aws:scheduler:::schedule/default/{}", order.name) }))
    }

    /// Does what is due, and forgets it.
    pub(super) fn fire(&mut self, now: Duration) {
        let due: Vec<String> =
            self.schedules.iter().filter(|(_, it)| it.at <= now).map(|(name, _)| name.clone()).collect();
        for name in due {
            let Some(schedule) = self.schedules.remove(&name) else { continue };
            let Some(instance) = self.instances.get(&schedule.instance) else { continue };
            self.fired.push(Fired { instance: instance.id.clone(), state: instance.state });
            self.end(&schedule.instance, schedule.at, "Client.UserInitiatedShutdown");
        }
    }
}
