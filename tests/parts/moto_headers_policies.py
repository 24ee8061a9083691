"""CloudFront's response headers policies, kept in memory as they were sent: create, list, get, update, delete."""

import uuid
from xml.etree import ElementTree

NAMESPACE = "http://cloudfront.amazonaws.com/doc/2020-05-31/"
PATH = "{0}/2020-05-31/response-headers-policy"
POLICIES = {}  # id -> (its configuration as XML, its version)


def name_of(config):
    return ElementTree.fromstring(config).findtext(f"{{{NAMESPACE}}}Name")


def fault(status, code):
    return status, {}, f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{code}</Message></Error></ErrorResponse>"


def document(policy):
    config = ElementTree.tostring(ElementTree.fromstring(POLICIES[policy][0]), encoding="unicode")
    return f"<ResponseHeadersPolicy><Id>{policy}</Id><LastModifiedTime>2026-01-01T00:00:00Z</LastModifiedTime>{config}</ResponseHeadersPolicy>"


def keep(policy, request):
    POLICIES[policy] = (request.data, uuid.uuid4().hex)
    return {"ETag": POLICIES[policy][1], "Location": policy}, document(policy)


def all_of_them(request, full_url, headers):
    if request.method == "POST":
        if name_of(request.data) in [name_of(config) for config, _ in POLICIES.values()]:
            return fault(409, "ResponseHeadersPolicyAlreadyExists")
        return 201, *keep(str(uuid.uuid4()), request)
    items = "".join(
        f"<ResponseHeadersPolicySummary><Type>custom</Type>{document(policy)}</ResponseHeadersPolicySummary>" for policy in POLICIES
    )
    count = f"<MaxItems>100</MaxItems><Quantity>{len(POLICIES)}</Quantity>"
    return 200, {}, f"<ResponseHeadersPolicyList>{count}<Items>{items}</Items></ResponseHeadersPolicyList>"


def one_of_them(request, full_url, headers):
    policy = full_url.split("?")[0].rstrip("/").split("/")[-1]
    if policy not in POLICIES:
        return fault(404, "NoSuchResponseHeadersPolicy")
    if request.method == "GET":
        return 200, {"ETag": POLICIES[policy][1]}, document(policy)
    if request.headers.get("If-Match") != POLICIES[policy][1]:
        return fault(412, "PreconditionFailed")
    if request.method == "DELETE":
        del POLICIES[policy]
        return 204, {}, ""
    return 200, *keep(policy, request)


URL_PATHS = {PATH + "$": all_of_them, PATH + "/(?P<policy>[^/]+)$": one_of_them}
