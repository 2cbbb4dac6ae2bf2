//! Which of EC2's codes is of which class, and what a person can do about it.
//!
//! Owns the tables: pure, no request is made here. Codes are matched whole; only families of codes that AWS names by a
//! pattern (`Invalid*`, `*LimitExceeded`) are matched by it, after the whole ones.

use super::error::ErrorClass;
use crate::model::ec2::Market;
use crate::provider::ec2::quota::{Quota, QuotaFamily};

/// What was asked for, as far as a class or the advice depends on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked<'a> {
    pub(super) action: &'static str,
    pub(super) service: &'static str,
    pub(super) region: &'a str,
    pub(super) profile: Option<&'a str>,
    pub(super) instance: Option<(&'a str, Market)>,
}

/// The class of a response with this code, and this status.
pub(super) fn class(code: Option<&str>, status: u16, asked: &Asked<'_>) -> ErrorClass {
    let Some(code) = code else { return class_of_status(status) };
    let quota = |market| {
        let family = asked.instance.map_or(QuotaFamily::Other, |(name, _)| QuotaFamily::of(name));
        ErrorClass::Quota(match market {
            Market::OnDemand => Quota::OnDemand(family),
            Market::Spot => Quota::Spot(family),
        })
    };
    match code {
        "InsufficientInstanceCapacity"
        | "InsufficientHostCapacity"
        | "InsufficientCapacityOnHost"
        | "InsufficientReservedInstanceCapacity"
        | "InsufficientCapacity"
        | "UnfulfillableCapacity"
        | "ReservationCapacityExceeded"
        | "SpotMaxPriceTooLow"
        | "Unsupported" => ErrorClass::Capacity,
        "VcpuLimitExceeded" => quota(asked.instance.map_or(Market::OnDemand, |(_, market)| market)),
        "InstanceLimitExceeded" => quota(Market::OnDemand),
        "MaxSpotInstanceCountExceeded" => quota(Market::Spot),
        "PendingVerification" => ErrorClass::Quota(Quota::Verification),
        "MaxFleetCountExceeded"
        | "ResourceCountExceeded"
        | "MaxIOPSLimitExceeded"
        | "ServiceQuotaExceededException" => ErrorClass::Quota(Quota::Other),
        "InsufficientFreeAddressesInSubnet" | "InvalidSubnet.NoFreeAddresses" => ErrorClass::Subnet,
        "AuthFailure.ServiceLinkedRoleCreationNotPermitted" => ErrorClass::SpotRole,
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "EC2ThrottledException"
        | "TooManyRequestsException"
        | "ConcurrentLimitExceededException"
        | "BandwidthLimitExceeded"
        | "SlowDown" => ErrorClass::Throttle,
        "InternalError"
        | "InternalFailure"
        | "InternalServerError"
        | "InternalServerException"
        | "ServiceUnavailable"
        | "Unavailable"
        | "RequestTimeout"
        | "RequestTimeoutException" => ErrorClass::Transient,
        "UnauthorizedOperation"
        | "UnauthorizedException"
        | "AuthFailure"
        | "AccessDenied"
        | "AccessDeniedException"
        | "Blocked"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "InvalidAccessKeyId"
        | "InvalidClientTokenId"
        | "InvalidSecurityToken"
        | "MissingAuthenticationToken"
        | "NotAuthorized"
        | "OptInRequired"
        | "RequestExpired"
        | "SignatureDoesNotMatch"
        | "TokenRefreshRequired"
        | "UnrecognizedClientException" => ErrorClass::Identity,
        "IdempotentParameterMismatch" | "IdempotentInstanceTerminated" | "ConflictException" => {
            ErrorClass::Idempotency
        }
        "IncorrectInstanceState"
        | "IncorrectState"
        | "IncorrectSpotRequestState"
        | "DependencyViolation"
        | "OperationNotPermitted"
        | "ResourceInUse"
        | "VolumeInUse"
        | "InvalidSnapshot.InUse"
        | "InvalidGroup.InUse" => ErrorClass::Busy,
        "InvalidInstanceID.NotFound"
        | "InvalidInstanceID"
        | "InvalidVolume.NotFound"
        | "InvalidSnapshot.NotFound"
        | "ResourceNotFoundException"
        | "InvalidID"
        | "InvalidSpotInstanceRequestID.NotFound"
        | "InvalidNetworkInterfaceID.NotFound" => ErrorClass::NotFound,
        "DryRunOperation"
        | "MissingParameter"
        | "MissingAction"
        | "UnknownParameter"
        | "UnsupportedOperation"
        | "UnsupportedInstanceAttribute"
        | "UnsupportedHibernationConfiguration"
        | "UnsupportedHostConfiguration"
        | "UnsupportedTenancy"
        | "ValidationError"
        | "ValidationException"
        | "EncryptedVolumesNotSupported"
        | "VPCIdNotSpecified"
        | "DefaultVpcDoesNotExist" => ErrorClass::Config,
        _ if code.ends_with("LimitExceeded") => ErrorClass::Quota(Quota::Other),
        _ if code.starts_with("Invalid") => ErrorClass::Config,
        // A code that we do not know is a considered answer, whatever the status says.
        _ if status == 429 => ErrorClass::Throttle,
        _ if status == 401 || status == 403 => ErrorClass::Identity,
        _ => ErrorClass::Unknown,
    }
}

/// An answer without a code comes from something in front of EC2.
fn class_of_status(status: u16) -> ErrorClass {
    match status {
        429 => ErrorClass::Throttle,
        408 | 502..=504 => ErrorClass::Transient,
        401 | 403 => ErrorClass::Identity,
        _ => ErrorClass::Unknown,
    }
}

/// Whether an answer with this code and status leaves it open if EC2 has acted.
pub(super) fn may_have_acted(code: Option<&str>, status: u16, class: ErrorClass) -> bool {
    match class {
        ErrorClass::Transient => true,
        ErrorClass::Unknown => status >= 500 || (code.is_none() && status < 300),
        ErrorClass::Capacity
        | ErrorClass::Quota(_)
        | ErrorClass::Subnet
        | ErrorClass::SpotRole
        | ErrorClass::Throttle
        | ErrorClass::Identity
        | ErrorClass::Config
        | ErrorClass::NotFound
        | ErrorClass::Busy
        | ErrorClass::Idempotency => false,
    }
}

/// The permission that AWS's words name as the missing one (`iam:PassRole`), which need not be that of the action.
pub(in crate::provider::ec2) fn named_permission(words: &str) -> Option<&str> {
    let (_, rest) = words.split_once("not authorized to perform: ")?;
    let action = rest.split_whitespace().next()?;
    let is_action = action.contains(':') && action.chars().all(|c| c.is_ascii_alphanumeric() || c == ':');
    is_action.then_some(action)
}

/// What a person can do about it; `words` are AWS's own.
pub(super) fn advice(
    class: ErrorClass,
    code: Option<&str>,
    words: &str,
    asked: &Asked<'_>,
) -> Option<String> {
    match class {
        ErrorClass::Quota(Quota::Verification) => {
            Some("AWS is still verifying this account; that takes up to four hours, then it works".into())
        }
        ErrorClass::Quota(quota) => {
            let code = quota.code().map_or_else(
                || "services/ec2/quotas".to_owned(),
                |code| format!("services/ec2/quotas/{code}"),
            );
            Some(format!(
                "the quota is: {quota}; raise it at \
                 https://{region}.console.aws.amazon.com/servicequotas/home/{code}",
                region = asked.region,
            ))
        }
        ErrorClass::SpotRole => Some(
            "spot needs a role once per account: `aws iam create-service-linked-role --aws-service-name \
             spot.amazonaws.com`"
                .into(),
        ),
        ErrorClass::Identity => Some(identity_advice(code, words, asked)),
        ErrorClass::Subnet => {
            Some("the subnet has no free address: use a larger one, or another zone".into())
        }
        ErrorClass::Config => match code {
            Some("InvalidUserData.Malformed") => Some("user data may have 16 KB".into()),
            Some("DefaultVpcDoesNotExist" | "VPCIdNotSpecified") => {
                Some("this region has no default VPC: set `subnets` of the pool".into())
            }
            Some(_) | None => None,
        },
        ErrorClass::Busy if code == Some("DependencyViolation") => {
            Some("something still uses it; it goes when its instances are gone".into())
        }
        ErrorClass::Busy
        | ErrorClass::Capacity
        | ErrorClass::Throttle
        | ErrorClass::Transient
        | ErrorClass::NotFound
        | ErrorClass::Idempotency
        | ErrorClass::Unknown => None,
    }
}

fn identity_advice(code: Option<&str>, words: &str, asked: &Asked<'_>) -> String {
    let of_profile =
        asked.profile.map_or_else(|| "the credentials".to_owned(), |name| format!("profile `{name}`"));
    match code {
        Some(
            "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" | "UnauthorizedException",
        ) => {
            let own = format!("{}:{}", asked.service, asked.action);
            let missing = named_permission(words).unwrap_or(&own);
            // Only EC2 can be asked without doing it.
            let shown = match asked.service {
                "ec2" => ", and `broker doctor --aws` shows which the broker lacks",
                _ => "",
            };
            format!(
                "{of_profile} may not do it: the missing permission is `{missing}`; the files nix/iam-policy*.json have \
                 all that are needed{shown}"
            )
        }
        Some("ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired") => {
            expired_advice(asked.profile)
        }
        Some("RequestExpired" | "SignatureDoesNotMatch" | "IncompleteSignature") => {
            format!("the secret key of {of_profile} is wrong, or the clock of this machine is")
        }
        Some("OptInRequired" | "PendingVerification" | "Blocked") => {
            "the account is not signed up for EC2 here: open the EC2 console once".into()
        }
        Some(_) | None => format!(
            "EC2 does not know {of_profile}: the key was deleted or mistyped, or the region `{}` is not enabled for \
             the account",
            asked.region
        ),
    }
}

/// The session behind the credentials has ended.
pub(super) fn expired_advice(profile: Option<&str>) -> String {
    match profile {
        Some(profile) => format!("the session has ended: `aws sso login --profile {profile}`"),
        None => "the session has ended: `aws sso login`, or new temporary credentials".into(),
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    fn asked(instance: Option<(&'static str, Market)>) -> Asked<'static> {
        Asked {
            action: "RunInstances",
            service: "ec2",
            region: "eu-central-1",
            profile: Some("work"),
            instance,
        }
    }

    /// Every code of the facts, and what the answer to it has to be.
    #[test]
    fn each_code_is_of_the_class_whose_reaction_is_right() {
        let on_demand = asked(Some(("c6a.4xlarge", Market::OnDemand)));
        let standard = QuotaFamily::Standard;
        for (class_of, codes) in [
            (
                ErrorClass::Capacity,
                "InsufficientInstanceCapacity UnfulfillableCapacity InsufficientCapacityOnHost SpotMaxPriceTooLow \
                 Unsupported ReservationCapacityExceeded",
            ),
            (ErrorClass::Quota(Quota::OnDemand(standard)), "VcpuLimitExceeded InstanceLimitExceeded"),
            (ErrorClass::Quota(Quota::Spot(standard)), "MaxSpotInstanceCountExceeded"),
            (ErrorClass::Quota(Quota::Verification), "PendingVerification"),
            (
                ErrorClass::Quota(Quota::Other),
                "MaxFleetCountExceeded VolumeLimitExceeded SecurityGroupLimitExceeded NewThingLimitExceeded",
            ),
            (ErrorClass::Subnet, "InsufficientFreeAddressesInSubnet"),
            (ErrorClass::SpotRole, "AuthFailure.ServiceLinkedRoleCreationNotPermitted"),
            (
                ErrorClass::Throttle,
                "RequestLimitExceeded Throttling EC2ThrottledException ThrottlingException \
                 TooManyRequestsException BandwidthLimitExceeded ConcurrentLimitExceededException",
            ),
            (
                ErrorClass::Transient,
                "InternalError ServiceUnavailable Unavailable InternalFailure InternalServerException",
            ),
            (
                ErrorClass::Identity,
                "UnauthorizedOperation AuthFailure ExpiredToken OptInRequired RequestExpired \
                 SignatureDoesNotMatch InvalidClientTokenId",
            ),
            (
                ErrorClass::Config,
                "InvalidAMIID.NotFound InvalidAMIID.Malformed InvalidSubnetID.NotFound InvalidGroup.NotFound \
                 InvalidParameterValue InvalidParameterCombination InvalidUserData.Malformed MissingParameter \
                 UnsupportedOperation InvalidInstanceID.Malformed InvalidInstanceType",
            ),
            (
                ErrorClass::NotFound,
                "InvalidInstanceID.NotFound InvalidVolume.NotFound InvalidSnapshot.NotFound ResourceNotFoundException",
            ),
            (
                ErrorClass::Busy,
                "IncorrectInstanceState DependencyViolation VolumeInUse InvalidSnapshot.InUse",
            ),
            (ErrorClass::Idempotency, "IdempotentParameterMismatch IdempotentInstanceTerminated"),
            (ErrorClass::Unknown, "BrandNew Whatever.Else"),
        ] {
            for code in codes.split_whitespace() {
                for status in [400, 500, 503] {
                    assert_eq!(class(Some(code), status, &on_demand), class_of, "{code}");
                }
            }
        }
    }

    #[test]
    fn only_throttling_and_trouble_on_the_way_are_asked_for_again() {
        for code in ["InsufficientInstanceCapacity", "VcpuLimitExceeded", "UnauthorizedOperation", "BrandNew"]
        {
            assert!(!class(Some(code), 500, &asked(None)).is_repeated(), "{code}");
        }
        assert!(class(Some("InternalError"), 500, &asked(None)).is_repeated());
        assert!(class(Some("RequestLimitExceeded"), 503, &asked(None)).is_repeated());
        assert!(class(None, 503, &asked(None)).is_repeated());
        assert!(!class(None, 500, &asked(None)).is_repeated());
    }

    #[test]
    fn a_quota_is_that_of_the_market_and_family_that_was_asked_for() {
        let spot = asked(Some(("x8g.large", Market::Spot)));
        let of = |code| class(Some(code), 400, &spot);
        assert_eq!(of("VcpuLimitExceeded"), ErrorClass::Quota(Quota::Spot(QuotaFamily::X)));
        let advice = advice(of("VcpuLimitExceeded"), Some("VcpuLimitExceeded"), "", &spot).unwrap();
        assert!(advice.contains("L-E3A00192") && advice.contains("eu-central-1"), "{advice}");
        for (name, family) in [
            ("c6a.large", QuotaFamily::Standard),
            ("c7i-flex.large", QuotaFamily::Standard),
            ("i7ie.large", QuotaFamily::Standard),
            ("m8azn.large", QuotaFamily::Standard),
            ("t4g.medium", QuotaFamily::Standard),
            ("", QuotaFamily::Other),
            ("im4gn.large", QuotaFamily::Standard),
            ("hpc7a.12xlarge", QuotaFamily::Hpc),
            ("x8i.large", QuotaFamily::X),
            ("g6.xlarge", QuotaFamily::G),
            ("p5.48xlarge", QuotaFamily::P),
            ("u-6tb1.metal", QuotaFamily::Other),
        ] {
            assert_eq!(QuotaFamily::of(name), family, "{name}");
        }
    }

    #[test]
    fn the_missing_permission_is_the_one_that_aws_names() {
        let words = "User: arn:aws:iam::123456789012:user/x is not authorized to perform: iam:PassRole on resource: \
                     arn:aws:iam::123456789012:role/r because no identity-based policy allows the iam:PassRole action";
        let create = Asked { action: "CreateSchedule", service: "scheduler", ..asked(None) };
        let said = advice(ErrorClass::Identity, Some("AccessDeniedException"), words, &create).unwrap();
        assert!(
            said.contains("the missing permission is `iam:PassRole`") && !said.contains("doctor"),
            "{said}"
        );
        let said = advice(ErrorClass::Identity, Some("AccessDeniedException"), "no", &create).unwrap();
        assert!(said.contains("the missing permission is `scheduler:CreateSchedule`"), "{said}");
        assert_eq!(named_permission("not authorized to perform: \u{1b}[2J"), None);
    }

    #[test]
    fn advice_names_the_profile_and_what_to_type() {
        let words = |code| advice(ErrorClass::Identity, Some(code), "", &asked(None)).unwrap();
        assert!(words("UnauthorizedOperation").contains("`ec2:RunInstances`"));
        assert!(words("UnauthorizedOperation").contains("profile `work`"));
        assert!(words("ExpiredToken").contains("aws sso login --profile work"));
        assert_eq!(
            advice(ErrorClass::Capacity, Some("InsufficientInstanceCapacity"), "", &asked(None)),
            None
        );
    }
}
