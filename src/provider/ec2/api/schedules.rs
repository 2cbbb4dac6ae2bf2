//! What AWS does by itself, later: one schedule of EventBridge Scheduler for one instance.
//!
//! Owns those three requests. When an instance is to end, and when its schedule is made and removed, is for the caller.

use std::time::{Duration, UNIX_EPOCH};

use aws_sdk_scheduler::error::BuildError;
use aws_sdk_scheduler::types::{ActionAfterCompletion, FlexibleTimeWindow, FlexibleTimeWindowMode, Target};

use super::action::Action;
use super::client::{Api, Call};
use super::error::{ApiError, ErrorClass};
use crate::model::ec2::RoleArn;

/// What every schedule of ours is called first; a policy allows these names and no others.
const PREFIX: &str = "nix-broker-";

/// An end that AWS sees to by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleOrder {
    /// What ends: `i-...`. Its schedule is named after it.
    pub instance: String,
    /// When, in seconds since 1970.
    pub at: u64,
    /// As whom AWS ends it.
    pub role: RoleArn,
    /// At most 64 ASCII characters, of this order alone: the same again is the same schedule.
    pub client_token: String,
}

impl ScheduleOrder {
    fn name(instance: &str) -> String {
        format!("{PREFIX}{instance}")
    }

    /// Once, at this second of UTC (EventBridge Scheduler User Guide, "One-time schedules").
    fn expression(&self) -> String {
        let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.at)).to_string();
        format!("at({})", at.trim_end_matches('Z'))
    }

    /// Any action of any service is a target, in the SDK's spelling (the same, "Using universal targets").
    fn target(&self) -> Result<Target, BuildError> {
        Target::builder()
            .arn(format!("arn:{}:scheduler:::aws-sdk:ec2:terminateInstances", self.role.partition()))
            .role_arn(self.role.as_str())
            .input(serde_json::json!({ "InstanceIds": [self.instance] }).to_string())
            .build()
    }
}

impl Api {
    /// AWS ends this instance then, whoever is left; a schedule that it has is moved. It goes by itself once it has done
    /// its work.
    pub async fn schedule(&self, order: &ScheduleOrder) -> Result<(), ApiError> {
        let name = ScheduleOrder::name(&order.instance);
        let of_ours = |error: BuildError| {
            ApiError::config(Action::CreateSchedule.name(), self.region(), error.to_string()).of(&name)
        };
        let target = order.target().map_err(of_ours)?;
        let window = FlexibleTimeWindow::builder().mode(FlexibleTimeWindowMode::Off).build();
        let window = window.map_err(of_ours)?;
        let call = Call::new(Action::CreateSchedule).of(&name);
        let create = || {
            let request = self.scheduler_client().create_schedule().name(&name).target(target.clone());
            let request = request.schedule_expression(order.expression()).client_token(&order.client_token);
            request
                .flexible_time_window(window.clone())
                .action_after_completion(ActionAfterCompletion::Delete)
                .send()
        };
        match self.call(&call, create).await {
            // There is one of this name, for another time or of an attempt whose answer was lost.
            Err(error) if error.class == ErrorClass::Idempotency => {}
            other => return other.map(|_| ()),
        }
        let call = Call::new(Action::UpdateSchedule).of(&name);
        // Whatever is not said again is reset.
        let update = || {
            let request = self.scheduler_client().update_schedule().name(&name).target(target.clone());
            let request = request.schedule_expression(order.expression()).client_token(&order.client_token);
            request
                .flexible_time_window(window.clone())
                .action_after_completion(ActionAfterCompletion::Delete)
                .send()
        };
        self.call(&call, update).await.map(|_| ())
    }

    /// AWS does nothing about this instance any more. One that has no schedule is as good.
    pub async fn unschedule(&self, instance: &str) -> Result<(), ApiError> {
        let name = ScheduleOrder::name(instance);
        let call = Call::new(Action::DeleteSchedule).of(&name);
        let answer = self.call(&call, || self.scheduler_client().delete_schedule().name(&name).send()).await;
        match answer {
            Err(error) if error.class == ErrorClass::NotFound => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_says_what_ends_when_and_as_whom() {
        let role = RoleArn::parse("arn:aws-cn:iam::123456789012:role/nix-broker-expiry").unwrap();
        let order = ScheduleOrder {
            instance: "i-0123456789abcdef0".into(),
            at: 1_795_219_200,
            role,
            client_token: "t".into(),
        };
        assert_eq!(order.expression(), "at(2026-11-21T00:00:00)");
        let target = order.target().unwrap();
        assert_eq!(target.arn(), "arn:aws-cn:scheduler:::aws-sdk:ec2:terminateInstances");
        assert_eq!(target.role_arn(), "arn:aws-cn:iam::123456789012:role/nix-broker-expiry");
        assert_eq!(target.input(), Some("{\"InstanceIds\":[\"i-0123456789abcdef0\"]}"));
        // EventBridge Scheduler takes 64 characters.
        assert!(ScheduleOrder::name(&order.instance).len() <= 64);
    }
}
