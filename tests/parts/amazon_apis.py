"""Amazon's APIs by moto, each call with its service, region and action."""

import re
import urllib.parse

import boto3

REGIONS = ("eu-west-1", "us-east-1")
# Headers of S3 that say something of what is made; in the record they stand among the parameters.
TELLING_HEADERS = ("Content-Type", "Cache-Control", "x-amz-object-ownership")


class AmazonApis:
    def __init__(self, url):
        self.url = url

    def named(self, request):
        scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/([^/]+)/", request.headers["Authorization"])
        told = {name: request.headers[name] for name in TELLING_HEADERS if scope[2] == "s3" and name in request.headers}
        about = {"host": f"{scope[2]}.amazonaws.com", "region": scope[1], "action": self.action(request)}
        return about | {"query": request.query | told}

    def action(self, request):
        if target := request.headers.get("X-Amz-Target"):
            return target.rpartition(".")[2]
        is_form = "urlencoded" in request.headers.get("Content-Type", "")
        form = urllib.parse.parse_qs(request.body.decode()) if is_form else {}
        return form.get("Action", [""])[0]

    def changes(self, request):
        if action := self.action(request):
            return not action.startswith(("Get", "List", "Describe"))
        return request.method not in ("GET", "HEAD")

    def answer(self, request):
        return request.forward(self.url)

    def state(self):
        """What there is, by name: ids, addresses and times are others each time that it is made."""

        def client(service, region="us-east-1"):
            keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
            return boto3.client(service, region, endpoint_url=self.url, **keys)

        there = {}
        for region in REGIONS:
            functions = client("lambda", region).list_functions()["Functions"]
            there |= {f"function {one['FunctionName']} in {region}": one["CodeSha256"] for one in functions}
            groups = client("logs", region).describe_log_groups()["logGroups"]
            there |= {f"log group {one['logGroupName']} in {region}": one.get("retentionInDays") for one in groups}
            gateway = client("apigatewayv2", region)
            for api in gateway.get_apis()["Items"]:
                routes = gateway.get_routes(ApiId=api["ApiId"])["Items"]
                stages = gateway.get_stages(ApiId=api["ApiId"])["Items"]
                about = [route["RouteKey"] for route in routes] + [
                    stage.get("DefaultRouteSettings") for stage in stages
                ]
                there[f"HTTP API {api['Name']} in {region}"] = about
        iam = client("iam")
        for role in iam.list_roles()["Roles"]:
            name = role["RoleName"]
            there[f"role {name}"] = [
                iam.list_role_policies(RoleName=name)["PolicyNames"],
                iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"],
            ]
        s3 = client("s3")
        for bucket in s3.list_buckets()["Buckets"]:
            objects = s3.list_objects_v2(Bucket=bucket["Name"]).get("Contents", [])
            there[f"bucket {bucket['Name']}"] = [one["Key"] for one in objects]
        cloudfront = client("cloudfront")
        distributions = cloudfront.list_distributions()["DistributionList"].get("Items", [])
        there |= {f"distribution of {one['Origins']['Items'][0]['Id']}": one["Enabled"] for one in distributions}
        controls = cloudfront.list_origin_access_controls()["OriginAccessControlList"].get("Items", [])
        there |= {f"origin access control {one['Name']}": one["SigningBehavior"] for one in controls}
        policies = cloudfront.list_response_headers_policies(Type="custom")["ResponseHeadersPolicyList"].get(
            "Items", []
        )
        policies = [one["ResponseHeadersPolicy"]["ResponseHeadersPolicyConfig"] for one in policies]
        there |= {f"headers policy {one['Name']}": sorted(one["SecurityHeadersConfig"]) for one in policies}
        account = client("sts").get_caller_identity()["Account"]
        budgets = client("budgets").describe_budgets(AccountId=account)["Budgets"]
        there |= {f"budget {one['BudgetName']}": one["BudgetLimit"]["Amount"] for one in budgets}
        return {"amazon": there}
