"""Starts moto_server with its gaps closed as far as our scripts meet them; arguments are those of `moto_server`.

- Where a signed request has no body, its parameters stand in the address. Moto checks such a request as if they had been
  the body, so that no `POST …?Action=GetCallerIdentity` with an empty body can pass. That is the form in which workload
  identity federation signs it.
- It has no response headers policies of CloudFront: `moto_headers_policies.py` has them. It forgets which access control an
  origin of a distribution has.
- It forgets how a Lambda logs, and does not tell the limits of an account: it has 1,000 at once.
- It cannot update the stage of an HTTP API, nor a budget and whom it tells.
"""

import json
import sys
from urllib.parse import unquote

# This file has the package's name: its folder may not stand before the installed packages.
folder = sys.path.pop(0)

import moto.awslambda.urls  # noqa: E402
import moto.cloudfront.urls  # noqa: E402
from moto.apigatewayv2.responses import ApiGatewayV2Response  # noqa: E402
from moto.awslambda.models import LambdaFunction  # noqa: E402
from moto.budgets.responses import BudgetsResponse  # noqa: E402
from moto.cloudfront.models import Origin  # noqa: E402
from moto.iam.access_control import IAMRequestBase  # noqa: E402
from moto.server import main  # noqa: E402

sys.path.append(folder)
import moto_headers_policies  # noqa: E402

create_aws_request = IAMRequestBase._create_aws_request
start_origin = Origin.__init__
start_function = LambdaFunction.__init__
update_function = LambdaFunction.update_configuration
function_configuration = LambdaFunction.get_configuration


def create_aws_request_as_sent(self):
    if not self._body:
        self._data = None
    return create_aws_request(self)


def start_origin_with_access_control(self, origin):
    self.origin_access_control_id = origin.get("OriginAccessControlId", "")
    start_origin(self, origin)


def start_function_that_logs(self, account_id, spec, *arguments, **named):
    self.logging_config = spec.get("LoggingConfig")
    start_function(self, account_id, spec, *arguments, **named)


def update_function_that_logs(self, updates):
    self.logging_config = updates.get("LoggingConfig", self.logging_config)
    return update_function(self, updates)


def function_configuration_that_logs(self, on_create=False):
    return {**function_configuration(self, on_create), "LoggingConfig": self.logging_config}


def update_stage(self):
    *_, api, _, name = self.path.split("/")
    stage = self.apigatewayv2_backend.get_stage(api, unquote(name))
    updates = json.loads(self.body)
    stage.default_route_settings = updates.get("defaultRouteSettings", stage.default_route_settings)
    stage.auto_deploy = updates.get("autoDeploy", stage.auto_deploy)
    return 200, {}, json.dumps(stage.to_json())


def budget_of(self):
    return self.backend.budgets[self._get_param("AccountId")][self._get_param("BudgetName")]


def subscribers_of(self):
    alerts = budget_of(self).notifications
    return next(alert.subscribers for alert in alerts if alert.details.items() >= self._get_param("Notification").items())


def describe_subscribers(self):
    return json.dumps({"Subscribers": subscribers_of(self)})


def update_subscriber(self):
    subscribers = subscribers_of(self)
    subscribers[subscribers.index(self._get_param("OldSubscriber"))] = self._get_param("NewSubscriber")
    return "{}"


def update_budget(self):
    budget = self._get_param("NewBudget")
    self.backend.budgets[self._get_param("AccountId")][budget["BudgetName"]].budget.update(budget)
    return "{}"


def account_settings(request, full_url, headers):
    limits = '{"AccountLimit": {"ConcurrentExecutions": 1000, "UnreservedConcurrentExecutions": 1000}}'
    return 200, {"content-type": "application/json"}, limits


IAMRequestBase._create_aws_request = create_aws_request_as_sent
Origin.__init__ = start_origin_with_access_control
LambdaFunction.__init__ = start_function_that_logs
LambdaFunction.update_configuration = update_function_that_logs
LambdaFunction.get_configuration = function_configuration_that_logs
ApiGatewayV2Response.update_stage = update_stage
BudgetsResponse.describe_subscribers_for_notification = describe_subscribers
BudgetsResponse.update_subscriber = update_subscriber
BudgetsResponse.update_budget = update_budget
moto.awslambda.urls.url_paths["{0}/2016-08-19/account-settings/?$"] = account_settings
moto.cloudfront.urls.url_paths.update(moto_headers_policies.URL_PATHS)

if __name__ == "__main__":
    main()
