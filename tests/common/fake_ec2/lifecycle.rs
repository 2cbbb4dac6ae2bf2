//! What happens to instances after their launch: described, tagged, stopped, started, terminated.
//!
//! Owns those actions, the ids that are not known yet, and the one bad id that spoils a request.

use std::time::Duration;

use super::account::Account;
use super::instance::State;
use super::launch::invalid;
use super::{Answer, Asked, Notice, Refusal, xml};

impl Account {
    pub(super) fn describe_instances(&mut self, asked: &Asked<'_>) -> Answer {
        let wanted = asked.form.list("InstanceId");
        self.all_known(asked, &wanted)?;
        let forgotten = self.settings.remembered;
        let mut found = Vec::new();
        for instance in self.instances.values() {
            let gone = instance.terminated_at.is_some_and(|at| asked.now >= at + forgotten);
            let here = instance.region == asked.region && asked.now >= instance.visible_at && !gone;
            if here
                && (wanted.is_empty() || wanted.contains(&instance.id))
                && asked.form.passes(|name| instance.attribute(name, asked.now))?
            {
                let reservation = format!("r-{}", &instance.id[2..]);
                let inside = xml::leaf("reservationId", reservation)
                    + &xml::list("instancesSet", [instance.document()]);
                found.push(inside);
            }
        }
        let (page, next) = asked.form.page(&found, self.settings.page);
        Ok(xml::list("reservationSet", page) + &xml::optional("nextToken", next))
    }

    /// An id that is unknown here, or not known yet, spoils the whole request.
    fn all_known(&self, asked: &Asked<'_>, ids: &[String]) -> Result<(), Refusal> {
        let known = |id: &&String| {
            self.instances.get(*id).is_some_and(|instance| {
                let gone =
                    instance.terminated_at.is_some_and(|at| asked.now >= at + self.settings.remembered);
                instance.region == asked.region && asked.now >= instance.visible_at && !gone
            })
        };
        let unknown: Vec<&str> = ids.iter().filter(|id| !known(id)).map(String::as_str).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let words = format!("The instance IDs '{}' do not exist", unknown.join(", "));
        Err(Refusal::new(400, "InvalidInstanceID.NotFound", words))
    }

    fn change(
        &mut self,
        asked: &Asked<'_>,
        check: impl Fn(&Self, &str) -> Result<(), Refusal>,
        change: impl Fn(&mut Self, &str, Duration),
    ) -> Answer {
        let ids = asked.form.list("InstanceId");
        if ids.is_empty() {
            return Err(Refusal::new(
                400,
                "MissingParameter",
                "The request must contain the parameter InstanceId",
            ));
        }
        self.all_known(asked, &ids)?;
        for id in &ids {
            check(self, id)?;
        }
        let mut items = Vec::new();
        for id in ids {
            let before = self.instances[&id].state;
            change(self, &id, asked.now);
            let after = self.instances[&id].state;
            items.push(
                xml::leaf("instanceId", &id)
                    + &after.document("currentState")
                    + &before.document("previousState"),
            );
        }
        Ok(xml::list("instancesSet", items))
    }

    pub(super) fn terminate_instances(&mut self, asked: &Asked<'_>) -> Answer {
        self.change(
            asked,
            |_, _| Ok(()),
            |account, id, now| account.end(id, now, "Client.UserInitiatedShutdown"),
        )
    }

    pub(super) fn stop_instances(&mut self, asked: &Asked<'_>) -> Answer {
        let hibernate = asked.form.get("Hibernate") == Some("true");
        self.change(
            asked,
            |account, id| {
                let instance = &account.instances[id];
                if instance.request.get("InstanceMarketOptions.MarketType") == Some("spot") {
                    let words = format!("You can't stop the Spot Instance '{id}' because it is one-time.");
                    return Err(Refusal::new(400, "UnsupportedOperation", words));
                }
                if hibernate && instance.request.get("HibernationOptions.Configured") != Some("true") {
                    let words = format!("The instance '{id}' is not configured for hibernation");
                    return Err(Refusal::new(400, "UnsupportedHibernationConfiguration", words));
                }
                account.in_one_of(id, &[State::Running, State::Stopping, State::Stopped])
            },
            |account, id, now| {
                if account.instances[id].state == State::Running {
                    account.halt(id, now, "Client.UserInitiatedShutdown");
                }
            },
        )
    }

    pub(super) fn start_instances(&mut self, asked: &Asked<'_>) -> Answer {
        let pending = self.settings.pending;
        self.change(
            asked,
            |account, id| account.in_one_of(id, &[State::Stopped, State::Pending, State::Running]),
            |account, id, now| {
                let instance = account.instances.get_mut(id).unwrap();
                if instance.state == State::Stopped {
                    instance.enter(State::Pending, now);
                    instance.planned = Some((now + pending, State::Running));
                    instance.started_at = now;
                    instance.reason = None;
                    account.notices.push(Notice::Started(instance.clone()));
                }
            },
        )
    }

    fn in_one_of(&self, id: &str, states: &[State]) -> Result<(), Refusal> {
        let state = self.instances[id].state;
        if states.contains(&state) {
            return Ok(());
        }
        let words =
            format!("The instance '{id}' is not in a state from which it can do this: {}", state.name());
        Err(Refusal::new(400, "IncorrectInstanceState", words))
    }

    pub(super) fn create_tags(&mut self, asked: &Asked<'_>) -> Answer {
        let ids = asked.form.list("ResourceId");
        let tags = asked.form.tags();
        if ids.is_empty() || tags.is_empty() {
            return Err(Refusal::new(400, "MissingParameter", "The request must contain resources and tags"));
        }
        let instances: Vec<String> = ids.iter().filter(|id| id.starts_with("i-")).cloned().collect();
        self.all_known(asked, &instances)?;
        let region = self.regions.get_mut(asked.region).unwrap();
        for id in ids {
            let target = if let Some(instance) = self.instances.get_mut(&id) {
                &mut instance.tags
            } else if let Some(volume) = self.volumes.get_mut(&id) {
                &mut volume.tags
            } else if let Some(group) = region.groups.get_mut(&id) {
                &mut group.tags
            } else if let Some(subnet) = region.subnets.get_mut(&id) {
                &mut subnet.tags
            } else if let Some(vpc) = region.vpcs.get_mut(&id) {
                &mut vpc.tags
            } else if let Some(gateway) = region.gateways.get_mut(&id) {
                &mut gateway.tags
            } else {
                return Err(Refusal::new(400, "InvalidID", format!("The ID '{id}' is not valid")));
            };
            target.extend(tags.clone());
        }
        Ok(xml::done())
    }

    pub(super) fn console_output(&mut self, asked: &Asked<'_>) -> Answer {
        let id = asked.form.get("InstanceId").unwrap_or_default().to_owned();
        self.all_known(asked, std::slice::from_ref(&id))?;
        let text = &self.instances[&id].console;
        let output = (!text.is_empty()).then(|| base64(text.as_bytes()));
        Ok(xml::leaf("instanceId", &id) + &xml::optional("output", output))
    }

    pub(super) fn modify_metadata(&mut self, asked: &Asked<'_>) -> Answer {
        let id = asked.form.get("InstanceId").unwrap_or_default().to_owned();
        self.all_known(asked, std::slice::from_ref(&id))?;
        match asked.form.get("HttpEndpoint") {
            Some("disabled") => self.instances.get_mut(&id).unwrap().metadata_open = false,
            Some("enabled") => self.instances.get_mut(&id).unwrap().metadata_open = true,
            Some(_) | None => return Err(invalid("HttpEndpoint")),
        }
        Ok(xml::leaf("instanceId", &id))
    }
}

fn base64(bytes: &[u8]) -> String {
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let byte = |index: usize| u32::from(three.get(index).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4_usize {
            let at = (word >> (18 - 6 * index)) & 63;
            text.push(if index <= three.len() { char::from(letters[at as usize]) } else { '=' });
        }
    }
    text
}
