"""Google's APIs in memory: resources that are made, changed, listed and removed, policies, and long-running operations.

They refuse what the services refuse and a script could get wrong: an API that is not enabled, a thing made twice, a
policy written with an old etag or for an account that is not there, what is not there itself.
"""

import copy
import json
import re
from urllib.parse import unquote

from answers import Answer, Request, fault, unknown
from google_transfer import DISCOVERY

# What is enabled in a new project, and what gcloud reaches through a project of its own.
ALWAYS_ENABLED = {
    "serviceusage",
    "cloudresourcemanager",
    "cloudbilling",
    "storage",
    "bigquery",
    "logging",
    "monitoring",
    "oauth2",
    "www",
}
# Changes with every write; not part of the state that two runs are compared by.
VOLATILE = {
    "etag",
    "generation",
    "resourceVersion",
    "uid",
    "uniqueId",
    "observedGeneration",
    "client.knative.dev/nonce",
}
VOLATILE |= {"run.googleapis.com/sources", "latestReadyRevisionName", "latestCreatedRevisionName", "revisionName"}
TIME = "2026-01-01T00:00:00Z"
# What a new bucket's policy has by itself.
OWNER_OF_BUCKET = "roles/storage.legacyBucketOwner"
# Of a new dataset.
FIRST_ACCESS = [
    {"role": "OWNER", "specialGroup": "projectOwners"},
    {"role": "WRITER", "specialGroup": "projectWriters"},
    {"role": "READER", "specialGroup": "projectReaders"},
]


class Kind:
    """A collection of resources: where it is, under which key it is listed, and what gives a new one its name."""

    def __init__(self, host, pattern, listed, name, operation=False, soft=False):
        self.host, self.listed, self.name, self.operation, self.soft = host, listed, name, operation, soft
        pattern = pattern.replace("*", "[^/]+")
        self.collection = re.compile(f"{pattern}/{listed}")
        self.resource = re.compile(f"({pattern}/{listed}/[^/:]+)(?::([A-Za-z]+))?")


# `?x` is a parameter of the address, `name` a field of the body; `+` is minted.
KINDS = [
    Kind("iam", "projects/*", "serviceAccounts", "accountId"),
    Kind(
        "iam", "projects/*/locations/*", "workloadIdentityPools", "?workloadIdentityPoolId", operation=True, soft=True
    ),
    Kind(
        "iam",
        "projects/*/locations/*/workloadIdentityPools/*",
        "providers",
        "?workloadIdentityPoolProviderId",
        operation=True,
        soft=True,
    ),
    Kind("iam", "projects/*", "roles", "roleId", soft=True),
    Kind("logging", "projects/*", "metrics", "name"),
    Kind("logging", "projects/*", "sinks", "name"),
    Kind("monitoring", "projects/*", "dashboards", "+"),
    Kind("monitoring", "projects/*", "alertPolicies", "+"),
    Kind("monitoring", "projects/*", "notificationChannels", "+"),
    Kind("billingbudgets", "billingAccounts/*", "budgets", "+"),
    Kind("bigquerydatatransfer", "projects/*/locations/*", "transferConfigs", "+"),
    Kind("artifactregistry", "projects/*/locations/*", "repositories", "?repositoryId", operation=True),
]
LISTED_AS = {"serviceAccounts": "accounts", "providers": "workloadIdentityPoolProviders"}


class GoogleApis:
    def __init__(self, options):
        self.options = options
        self.project, self.number = options.project, options.number
        self.enabled = set()
        self.resources = {}
        self.policies = {}
        self.operations = {}
        self.access = {}
        self.minted = 0
        self.not_starting = None
        owner = {"role": "roles/owner", "members": ["user:owner@example.com"]}
        self.policies[f"cloudresourcemanager.googleapis.com/projects/{self.project}"] = {
            "bindings": [owner],
            "etag": "AA==",
        }
        sink = {
            "name": "_Default",
            "destination": f"logging.googleapis.com/projects/{self.project}/locations/global/buckets/_Default",
        }
        sink["filter"] = 'NOT LOG_ID("cloudaudit.googleapis.com/activity")'
        self.resources[f"logging.googleapis.com/projects/{self.project}/sinks/_Default"] = sink

    # What a test asks.

    def state(self):
        def steady(value):
            if isinstance(value, dict):
                return {key: steady(inner) for key, inner in sorted(value.items()) if key not in VOLATILE and inner}
            return [steady(inner) for inner in value] if isinstance(value, list) else value

        there = {name: steady(one) for name, one in self.resources.items() if one.get("state") != "DELETED"}
        policies = {}
        for name, policy in self.policies.items():
            bindings = [b for b in policy.get("bindings", []) if b["role"] != OWNER_OF_BUCKET]
            members = sorted(
                (b["role"], member, json.dumps(b.get("condition"))) for b in bindings for member in b["members"]
            )
            if members:
                policies[name] = members
        return {
            "resources": there,
            "policies": policies,
            "services": dict.fromkeys(sorted(self.enabled)),
            "tables": self.tables(),
        }

    def tables(self):
        """Tables and views of BigQuery with their columns, and datasets."""

        def asked(path):
            return (
                Request("GET", "", f"/bigquery/v2/projects/{self.project}/{path}", {}, b"")
                .forward(self.options.bigquery)
                .json()
            )

        tables = {}
        for dataset in asked("datasets?maxResults=1000").get("datasets", []):
            name = dataset["datasetReference"]["datasetId"]
            tables[name] = self.access.get(f"bigquery.googleapis.com/projects/{self.project}/datasets/{name}")
            for table in asked(f"datasets/{name}/tables?maxResults=1000").get("tables", []):
                own = table["tableReference"]["tableId"]
                about = asked(f"datasets/{name}/tables/{own}")
                tables[f"{name}.{own}"] = [
                    about.get(key) for key in ("type", "schema", "timePartitioning", "clustering", "view")
                ]
        return tables

    # The way to what answers.

    def answer(self, request):
        host = request.host
        service = (
            host.removesuffix(".googleapis.com").rpartition("-")[2]
            if host.endswith("-run.googleapis.com")
            else host.partition(".")[0]
        )
        if host == "oauth2.googleapis.com" and request.path == "/token":
            return Answer.of({"access_token": "token-of-the-test", "expires_in": 3600, "token_type": "Bearer"})
        if request.path == "/$discovery/rest" and service == "bigquerydatatransfer":
            return Answer.of(DISCOVERY)
        if service not in ALWAYS_ENABLED | {"iam"} and f"{service}.googleapis.com" not in self.enabled:
            return self.disabled(f"{service}.googleapis.com")
        if service == "iam" and request.method != "GET" and "iam.googleapis.com" not in self.enabled:
            return self.disabled("iam.googleapis.com")
        path = re.sub(r"^/v\d\w*/", "", request.path)
        path = path.replace(f"projects/{self.number}", f"projects/{self.project}")
        if service == "pubsub":
            return self.pubsub(request, path)
        if service == "run":
            return self.run(request, path)
        if special := getattr(self, f"of_{service}", None):
            answer = special(request, path)
            if answer is not None:
                return answer
        for kind in KINDS:
            if kind.host != service:
                continue
            if kind.collection.fullmatch(path):
                return self.collection(request, kind, path)
            if match := kind.resource.fullmatch(path):
                return self.resource(request, kind, match[1], match[2])
        if (operation := self.operations.get(path)) and request.method == "GET":
            return Answer.of(operation)
        return unknown(request)

    def disabled(self, service):
        about = {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "SERVICE_DISABLED",
            "domain": "googleapis.com",
        }
        about["metadata"] = {"service": service, "consumer": f"projects/{self.number}"}
        return fault(403, f"{service} has not been used in project {self.number} before or it is disabled.", [about])

    # Resources.

    def collection(self, request, kind, path):
        if request.method == "GET":
            of = f"{kind.host}.googleapis.com/{path}/"
            found = [
                one for name, one in self.resources.items() if name.startswith(of) and "/" not in name.removeprefix(of)
            ]
            if request.query.get("showDeleted", "").lower() != "true":
                found = [one for one in found if one.get("state") != "DELETED"]
            if wanted := request.query.get("filter"):
                # Of the language of filters (https://cloud.google.com/monitoring/api/v3/sorting-and-filtering) the simplest.
                match = re.fullmatch(r'([a-z_.]+) ?= ?"([^"]*)"', wanted)
                if match is None:
                    return unknown(request)
                found = [one for one in found if field(one, match[1]) == match[2]]
            return Answer.of({LISTED_AS.get(kind.listed, kind.listed): found})
        if request.method != "POST":
            return unknown(request)
        body = request.json()
        if kind.listed == "serviceAccounts":
            account = body["accountId"]
            if not re.fullmatch(r"[a-z]([-a-z0-9]{4,28})[a-z0-9]", account):
                return fault(400, f"accountId: {account}: 6 to 30 characters")
            email = f"{account}@{self.project}.iam.gserviceaccount.com"
            body = body.get("serviceAccount", {}) | {
                "email": email,
                "uniqueId": str(1000 + len(self.resources)),
                "projectId": self.project,
            }
            own = email
        elif kind.name == "+":
            self.minted += 1
            own = body.get("name", "").rpartition("/")[2] or f"id-{self.minted}"
        else:
            own = request.query.get(kind.name[1:]) if kind.name.startswith("?") else body.get(kind.name)
        if not own:
            return fault(400, f"{kind.name} is missing")
        name = f"{path}/{own}"
        key = f"{kind.host}.googleapis.com/{name}"
        if key in self.resources:
            return fault(409, f"{name} already exists")
        parent = path.rpartition("/")[0]
        if (
            "/workloadIdentityPools/" in path
            and self.resources.get(f"iam.googleapis.com/{parent}", {}).get("state") != "ACTIVE"
        ):
            return fault(404, f"{parent} does not exist")
        body = body.get("role", body) | {
            "name": (
                own
                if kind.host == "logging"
                else name.replace(f"projects/{self.project}/", f"projects/{self.number}/") if kind.operation else name
            )
        }
        body["etag"] = self.mint()
        if kind.soft:
            body["state"] = "ACTIVE"
        for position, condition in enumerate(body.get("conditions", []) if kind.listed == "alertPolicies" else []):
            condition["name"] = f"{name}/conditions/{position}"
        self.resources[key] = body
        return self.done(name, body) if kind.operation else Answer.of(body)

    def resource(self, request, kind, name, verb):
        if kind.listed == "serviceAccounts":
            name = name.replace("projects/-/", f"projects/{self.project}/")
        key = f"{kind.host}.googleapis.com/{name}"
        one = self.resources.get(key)
        if one is None:
            return fault(404, f"{name} does not exist")
        if verb in ("getIamPolicy", "setIamPolicy"):
            return self.policy(key, request.json().get("policy") if verb == "setIamPolicy" else None)
        if verb == "undelete" and kind.soft and one["state"] == "DELETED":
            one |= {"state": "ACTIVE", "deleted": False}
        elif verb:
            return unknown(request)
        elif request.method == "GET":
            return Answer.of(one)
        elif request.method == "DELETE":
            self.policies.pop(key, None)
            if kind.soft:
                one |= {"state": "DELETED", "deleted": True}
            else:
                del self.resources[key]
                one = {}
        elif request.method in ("PATCH", "PUT"):
            body = request.json()
            body = body.get("serviceAccount", body)
            if body.get("etag", one.get("etag")) != one.get("etag"):
                return fault(409, f"{name}: the etag is an old one")
            masked(
                one, body, request.query.get("updateMask") or request.query.get("update_mask"), request.method == "PUT"
            )
            one["etag"] = self.mint()
        else:
            return unknown(request)
        return self.done(name, one) if kind.operation else Answer.of(one)

    def done(self, name, one):
        self.minted += 1
        scope = name.rpartition("/repositories/")[0] or name
        operation = {
            "name": f"{scope}/operations/operation-{self.minted}",
            "done": True,
            "response": copy.deepcopy(one),
        }
        self.operations[operation["name"]] = operation
        return Answer.of(operation)

    def mint(self):
        self.minted += 1
        return f"etag{self.minted:04}"

    # Policies.

    def policy(self, key, new, first=()):
        """Reads the policy of a resource, or writes it."""
        policy = self.policies.get(key) or {"version": 1, "etag": "ACAB", "bindings": copy.deepcopy(list(first))}
        if new is None:
            return Answer.of(policy)
        if new.get("etag", policy["etag"]) != policy["etag"]:
            return fault(409, "There were concurrent policy changes.")
        for binding in new.get("bindings", []):
            own = self.resources.get(f"iam.googleapis.com/{binding['role']}", {})
            if binding["role"].startswith("projects/") and own.get("state") != "ACTIVE":
                return fault(400, f"Role {binding['role']} is not supported for this resource.")
            for member in binding["members"]:
                if not self.is_member(member):
                    return fault(400, f"{member}: does not exist")
        self.policies[key] = new | {"etag": self.mint()}
        return Answer.of(self.policies[key])

    def is_member(self, member):
        kind, _, name = member.partition(":")
        if kind == "serviceAccount":
            own = f"iam.googleapis.com/projects/{self.project}/serviceAccounts/{name}"
            return own in self.resources or not name.endswith(f"@{self.project}.iam.gserviceaccount.com")
        if kind in ("principal", "principalSet"):
            pool = re.match(
                rf"//iam\.googleapis\.com/projects/{self.number}/locations/global/workloadIdentityPools/([^/]+)/", name
            )
            key = f"iam.googleapis.com/projects/{self.project}/locations/global/workloadIdentityPools/{pool[1] if pool else ''}"
            return self.resources.get(key, {}).get("state") == "ACTIVE"
        return True

    # Single services.

    def of_serviceusage(self, request, path):
        def one(name):
            state = "ENABLED" if name in self.enabled or name.partition(".")[0] in ALWAYS_ENABLED else "DISABLED"
            return {
                "name": f"projects/{self.number}/services/{name}",
                "config": {"name": name},
                "state": state,
                "parent": f"projects/{self.number}",
            }

        if path.startswith("operations/"):
            return Answer.of({"name": path, "done": True, "response": {}})
        services = f"projects/{self.project}/services"
        if request.method == "GET" and path == services:
            known = self.enabled | {f"{name}.googleapis.com" for name in ALWAYS_ENABLED - {"oauth2", "www"}}
            return Answer.of({"services": [one(name) for name in sorted(known)]})
        if request.method == "GET" and path == f"{services}:batchGet":
            return Answer.of({"services": [one(request.query["names"].rpartition("/")[2])]})
        if match := re.fullmatch(rf"{services}(?:/([^/:]+))?(?::(\w+))?", path):
            name, verb = match.groups()
            if request.method == "GET" and not verb:
                return Answer.of(one(name))
            if verb == "generateServiceIdentity":
                email = f"service-{self.number}@gcp-sa-{name.partition('.')[0]}.iam.gserviceaccount.com"
                return Answer.of(
                    {"name": "operations/identity", "done": True, "response": {"email": email, "uniqueId": "1"}}
                )
            if verb in ("enable", "batchEnable"):
                names = [name] if name else request.json()["serviceIds"]
                self.enabled |= set(names)
                return Answer.of(
                    {"name": "operations/enable", "done": True, "response": {"services": [one(name) for name in names]}}
                )
            if verb == "disable":
                self.enabled.discard(name)
                return Answer.of({"name": "operations/disable", "done": True, "response": {}})
        return None

    def of_bigquerydatatransfer(self, request, path):
        if path.endswith("/dataSources/scheduled_query:checkValidCreds"):
            return Answer.of({"hasValidCreds": True})
        account = request.query.get("serviceAccountName")
        if account and not self.is_member(f"serviceAccount:{account}"):
            return fault(400, f"{account}: does not exist")
        return None

    def of_cloudresourcemanager(self, request, path):
        project = f"projects/{self.project}"
        key = f"cloudresourcemanager.googleapis.com/{project}"
        if request.method == "GET" and path.startswith("projects/") and ":" not in path:
            if path != project:
                return fault(403, f"{path}: no such project, or it may not be seen")
            about = {
                "projectId": self.project,
                "projectNumber": self.number,
                "name": project if "/v3/" in request.path else self.project,
            }
            return Answer.of(about | {"lifecycleState": "ACTIVE", "state": "ACTIVE", "displayName": self.project})
        if path == f"{project}:getIamPolicy":
            return self.policy(key, None)
        if path == f"{project}:setIamPolicy":
            return self.policy(key, request.json()["policy"])
        return None

    def of_cloudbilling(self, request, path):
        account = f"billingAccounts/{self.options.billing_account}"
        if path == f"projects/{self.project}/billingInfo" and request.method == "GET":
            return Answer.of(
                {"name": path, "projectId": self.project, "billingAccountName": account, "billingEnabled": True}
            )
        if path.startswith("billingAccounts/") and not path.startswith(account):
            return fault(403, "The caller does not have permission")
        if path == account and request.method == "GET":
            return Answer.of({"name": account, "open": True, "displayName": "billing", "currencyCode": "USD"})
        if path in (f"{account}:getIamPolicy", f"{account}:setIamPolicy"):
            return self.policy(
                f"cloudbilling.googleapis.com/{account}",
                request.json()["policy"] if request.method == "POST" and "setIam" in path else None,
            )
        return None

    def of_cloudbuild(self, request, path):
        """A build succeeds at once; nothing is built."""
        if match := re.fullmatch(rf"(projects/{self.project}(?:/locations/[^/]+)?)/builds", path):
            if request.method != "POST":
                return None
            self.minted += 1
            build = request.json() | {
                "id": f"build-{self.minted}",
                "projectId": self.project,
                "status": "SUCCESS",
                "createTime": TIME,
            }
            build |= {
                "name": f"{path}/build-{self.minted}",
                "startTime": TIME,
                "finishTime": TIME,
                "logUrl": "https://console.cloud.google.com",
            }
            build["results"] = {"images": [{"name": image, "digest": "sha256:0"} for image in build.get("images", [])]}
            self.operations[f"{path}/{build['id']}"] = build
            kind = "type.googleapis.com/google.devtools.cloudbuild.v1.BuildOperationMetadata"
            return Answer.of(
                {"name": f"{match[1]}/operations/{build['id']}", "metadata": {"@type": kind, "build": build}}
            )
        return None

    # Cloud Run by its v1 API, as gcloud uses it.

    def run(self, request, path):
        region = request.host.removesuffix("-run.googleapis.com") if request.host != "run.googleapis.com" else None
        if path == f"projects/{self.project}/locations":
            regions = ("europe-west1", "us-central1")
            return Answer.of({"locations": [{"name": f"{path}/{one}", "locationId": one} for one in regions]})
        if match := re.fullmatch(
            rf"projects/{self.project}/locations/([^/]+)/(services|jobs)/([^/:]+):(get|set)IamPolicy", path
        ):
            key = f"run.googleapis.com/{match[1]}/{match[2]}/{match[3]}"
            if key not in self.resources:
                return fault(404, f"{match[3]} does not exist")
            return self.policy(key, request.json()["policy"] if match[4] == "set" else None)
        match = re.fullmatch(
            rf"/apis/(?:serving\.knative\.dev|run\.googleapis\.com)/v1/namespaces/(?:{self.project}|{self.number})/(services|jobs|revisions|executions|routes|configurations)(?:/([^/]+))?",
            path,
        )
        if match is None or region is None:
            return unknown(request)
        kind, name = match.groups()
        own = f"run.googleapis.com/{region}/{kind}/"
        if request.method == "GET" and name is None:
            return Answer.of({"items": [one for key, one in self.resources.items() if key.startswith(own)]})
        if request.method == "POST" and name is None:
            name = request.json()["metadata"]["name"]
            if own + name in self.resources:
                return fault(409, f"{kind} {name} already exists")
        elif own + name not in self.resources:
            return fault(404, f"{kind} {name} does not exist")
        if request.method in ("POST", "PUT"):
            return self.run_made(request, region, kind, name)
        if request.method == "DELETE":
            del self.resources[own + name]
            self.policies.pop(own + name, None)
            return Answer.of({"kind": "Status", "status": "Success"})
        return Answer.of(self.resources[own + name]) if request.method == "GET" else unknown(request)

    def run_made(self, request, region, kind, name):
        body = request.json()
        spec = body["spec"]["template"]["spec"]
        account = (spec.get("template", {}).get("spec", {}) or spec).get("serviceAccountName")
        if account and not self.is_member(f"serviceAccount:{account}"):
            return fault(400, f"service account {account} does not exist")
        if request.query.get("dryRun"):
            return Answer.of(body)
        key = f"run.googleapis.com/{region}/{kind}/{name}"
        generation = self.resources[key]["metadata"]["generation"] + 1 if key in self.resources else 1
        about = {
            "namespace": self.number,
            "generation": generation,
            "uid": key,
            "resourceVersion": str(generation),
            "selfLink": key,
            "creationTimestamp": TIME,
        }
        body["metadata"] |= about
        body["metadata"].setdefault("annotations", {}).setdefault("run.googleapis.com/ingress-status", "all")
        body["metadata"].setdefault("labels", {})["cloud.googleapis.com/location"] = region
        conditions = ["Ready", "ConfigurationsReady", "RoutesReady"] if kind == "services" else ["Ready"]
        status = {
            "observedGeneration": generation,
            "conditions": [{"type": one, "status": "True", "lastTransitionTime": TIME} for one in conditions],
        }
        if kind == "services":
            url = self.options.run_url.get(name, f"https://{name}-{self.number}.{region}.run.app")
            revision = f"{name}-{generation:05}-abc"
            status |= {"url": url, "address": {"url": url}, "latestCreatedRevisionName": revision}
            if name == self.not_starting:
                before = self.resources.get(key, {}).get("status", {})
                status["latestReadyRevisionName"] = before.get("latestReadyRevisionName", "")
                for condition in status["conditions"][:2]:
                    condition |= {"status": "False", "message": f"Revision '{revision}' is not ready and cannot serve traffic."}
            else:
                status["latestReadyRevisionName"] = revision
            status["traffic"] = [{"revisionName": revision, "percent": 100, "latestRevision": True}]
        self.resources[key] = body | {"status": status}
        return Answer.of(self.resources[key])

    # Pub/Sub: the emulator, which keeps no policies and forgets some settings.

    def pubsub(self, request, path):
        name, _, verb = path.partition(":")
        key = f"pubsub.googleapis.com/{name}"
        if verb in ("getIamPolicy", "setIamPolicy"):
            if key not in self.resources:
                return fault(404, f"Resource not found: {name}")
            return self.policy(key, request.json()["policy"] if verb == "setIamPolicy" else None)
        if refused := self.push_account(request):
            return refused
        kept, refused = self.retention(request)
        if refused:
            return refused
        answer = request.forward(self.options.pubsub)
        request.body = kept
        if answer.status != 200:
            return answer
        if request.method == "PUT":
            self.resources[key] = {"name": name} | request.json()
        elif request.method == "DELETE":
            self.resources.pop(key, None)
            self.policies.pop(key, None)
        elif request.method == "PATCH":
            body = request.json()
            masked(self.resources[key], body.get("subscription") or body.get("topic"), body.get("updateMask"), False)
        elif verb == "modifyPushConfig":
            self.resources[key]["pushConfig"] = request.json().get("pushConfig", {})
        if verb or key not in self.resources:
            return answer
        return Answer.of(answer.json() | self.resources[key])

    def push_account(self, request):
        """Pub/Sub pushes only as an account that is there."""
        if request.method not in ("PUT", "POST", "PATCH"):
            return None
        account = re.search(r'"serviceAccountEmail":\s*"([^"]*)"', request.body.decode(errors="replace"))
        if account and not self.is_member(f"serviceAccount:{account[1]}"):
            return fault(404, f"service account {account[1]} does not exist")
        return None

    def retention(self, request):
        """Subscriptions keep messages for 31 days; the emulator knows only of 7. The body to be kept, or a refusal."""
        body = request.body
        found = re.search(r'"messageRetentionDuration":\s*"(\d+)s"', body.decode(errors="replace"))
        if found and not 600 <= int(found[1]) <= 31 * 86_400:
            return body, fault(400, f"message_retention_duration out of bounds: {found[1]} s")
        if found and int(found[1]) > 7 * 86_400:
            request.body = body.replace(found[0].encode(), b'"messageRetentionDuration": "604800s"')
        return body, None

    # BigQuery: bqemulator, which keeps no policies of tables and no access of datasets.

    def bigquery(self, request):
        if match := re.fullmatch(
            r"(/bigquery/v2/projects/[^/]+/datasets/[^/]+/(?:tables|routines)/[^/:]+):(\w+)", request.path
        ):
            there = Request("GET", request.host, match[1], {}, b"").forward(self.options.bigquery)
            if there.status != 200:
                return there
            key = f"bigquery.googleapis.com/{match[1].removeprefix('/bigquery/v2/')}"
            if match[2] in ("getIamPolicy", "setIamPolicy"):
                return self.policy(key, request.json()["policy"] if match[2] == "setIamPolicy" else None)
            return unknown(request)
        answer = request.forward(self.options.bigquery)
        key = f"bigquery.googleapis.com/{request.path.removeprefix('/bigquery/v2/')}"
        if answer.status >= 300 or not re.fullmatch(r".*/datasets/[^/]+", key):
            return answer
        if request.method == "DELETE":
            self.access.pop(key, None)
            return answer
        if request.method in ("PATCH", "PUT") and "access" in request.json():
            self.access[key] = request.json()["access"]
        return Answer.of(answer.json() | {"access": self.access.get(key, FIRST_ACCESS)})


def camel(name):
    return re.sub(r"_(.)", lambda m: m[1].upper(), name)


def field(one, path):
    for name in path.split("."):
        one = one.get(camel(name), {})
    return one


def masked(one, body, mask, whole):
    """Changes the fields that the mask names, by default those of the body; with `whole` the body is all there is."""
    if mask:
        for path in mask.split(","):
            target, source = one, body
            *parents, last = camel(path.strip()).split(".")
            for parent in parents:
                target, source = target.setdefault(parent, {}), source.get(parent, {})
            if last in source:
                target[last] = source[last]
            else:
                target.pop(last, None)
        return
    if whole:
        kept = {key: one[key] for key in ("name", "etag", "state", "email", "uniqueId", "projectId") if key in one}
        one.clear()
        one.update(kept)
    one.update({key: value for key, value in body.items() if key != "etag"})


def only_reads(request):
    """Whether a query or job of BigQuery changes nothing."""
    body = request.json()
    query = body.get("query") or body.get("configuration", {}).get("query", {})
    query = query.get("query", "") if isinstance(query, dict) else query
    return bool(re.match(r"\s*(SELECT|WITH)\b", query, re.IGNORECASE))
