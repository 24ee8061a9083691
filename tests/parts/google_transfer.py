"""What bq must know of the Data Transfer Service before it asks it anything: its methods, of Google's own description those that the
deployment uses."""


def method(name, verb, path, **query):
    of = "parent" if "{+parent}" in path else "name"
    parameters = {of: {"type": "string", "required": True, "location": "path", "pattern": "^.+$"}}
    parameters |= {name: {"type": kind, "location": "query"} for name, kind in query.items()}
    about = {"id": f"bigquerydatatransfer.{name}", "httpMethod": verb, "path": path, "parameters": parameters}
    if verb == "POST":
        about["request"] = {"$ref": "Any"}
    return about | {"parameterOrder": [of], "response": {"$ref": "Any"}}


VALID = {"methods": {"checkValidCreds": method("checkValidCreds", "POST", "v1/{+name}:checkValidCreds")}}
CONFIGS = {
    "list": method(
        "list", "GET", "v1/{+parent}/transferConfigs", pageSize="integer", pageToken="string", dataSourceIds="string"
    ),
    "create": method(
        "create",
        "POST",
        "v1/{+parent}/transferConfigs",
        authorizationCode="string",
        versionInfo="string",
        serviceAccountName="string",
    ),
    "delete": method("delete", "DELETE", "v1/{+name}"),
}
LOCATIONS = {"resources": {"transferConfigs": {"methods": CONFIGS}, "dataSources": VALID}}
DISCOVERY = {
    "kind": "discovery#restDescription",
    "name": "bigquerydatatransfer",
    "version": "v1",
    "rootUrl": "https://bigquerydatatransfer.googleapis.com/",
    "baseUrl": "https://bigquerydatatransfer.googleapis.com/",
    "basePath": "",
    "servicePath": "",
    "batchPath": "batch",
    "schemas": {"Any": {"id": "Any", "type": "any"}},
    "resources": {"projects": {"resources": {"locations": LOCATIONS, "dataSources": VALID}}},
}
