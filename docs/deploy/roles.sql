-- Once in a new database, by a superuser. Requests run in this role: it owns nothing, so row-level security binds it.
-- `openclaw-gateway db upgrade` grants it what it needs. Where the gateway's login is no superuser, grant it the role:
--     GRANT gateway_requests TO gateway;
CREATE ROLE gateway_requests NOLOGIN;
