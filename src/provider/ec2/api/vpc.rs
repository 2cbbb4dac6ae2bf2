//! The default VPC, made whole and unmade whole, and the regions there are.
//!
//! Owns the few requests that only `broker init` and `broker sweep --all-regions` make.

use super::action::Action;
use super::client::{Api, Call, Repeat};
use super::error::{ApiError, ErrorClass};

impl Api {
    /// The regions that the account can use.
    pub async fn regions(&self) -> Result<Vec<String>, ApiError> {
        let call = Call::new(Action::DescribeRegions);
        let output = self.call(&call, || self.client().describe_regions().send()).await?;
        Ok(output.regions().iter().filter_map(|region| Some(region.region_name()?.to_owned())).collect())
    }

    /// Makes the region's default VPC: with a subnet in every zone, an internet gateway, and routes.
    pub async fn create_default_vpc(&self) -> Result<String, ApiError> {
        let call = Call::new(Action::CreateDefaultVpc).repeat(Repeat::Undone);
        let output = self.call(&call, || self.client().create_default_vpc().send()).await?;
        let id = output.vpc().and_then(|vpc| vpc.vpc_id()).map(str::to_owned);
        id.ok_or_else(|| ApiError {
            class: ErrorClass::Unknown,
            may_have_acted: true,
            ..ApiError::config(Action::CreateDefaultVpc.name(), self.region(), "the answer names no VPC")
        })
    }

    /// The internet gateways of a VPC.
    pub async fn internet_gateways(&self, vpc: &str) -> Result<Vec<String>, ApiError> {
        let call = Call::new(Action::DescribeInternetGateways).of(vpc);
        let filters = super::read::filters(&[("attachment.vpc-id", &[vpc.to_owned()])]);
        let send = || self.client().describe_internet_gateways().set_filters(Some(filters.clone())).send();
        let output = self.call(&call, send).await?;
        let ids = output.internet_gateways().iter().filter_map(|gateway| gateway.internet_gateway_id());
        Ok(ids.map(str::to_owned).collect())
    }

    /// Takes a gateway from a VPC and deletes it; one that is gone already is deleted.
    pub async fn delete_internet_gateway(&self, id: &str, vpc: &str) -> Result<(), ApiError> {
        let detach = Call::new(Action::DetachInternetGateway).of(format!("{id} from {vpc}"));
        let client = self.client();
        let send = || client.detach_internet_gateway().internet_gateway_id(id).vpc_id(vpc).send();
        match self.call(&detach, send).await {
            Err(error) if error.code.as_deref() == Some("Gateway.NotAttached") => {}
            other => super::network::gone_is_fine(other)?,
        }
        let delete = Call::new(Action::DeleteInternetGateway).of(id);
        let send = || client.delete_internet_gateway().internet_gateway_id(id).send();
        super::network::gone_is_fine(self.call(&delete, send).await)
    }

    /// Deletes an empty VPC; one that is gone already is deleted. Class `Busy` while something is in it.
    pub async fn delete_vpc(&self, id: &str) -> Result<(), ApiError> {
        let call = Call::new(Action::DeleteVpc).of(id);
        super::network::gone_is_fine(self.call(&call, || self.client().delete_vpc().vpc_id(id).send()).await)
    }
}
