"""The one home of every name: API group, labels, annotations, ports, paths, derived objects.

Nothing else in the project spells one of these out.
"""

from __future__ import annotations

GROUP = "pgcluster.dev"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "PgCluster"
PLURAL = "pgclusters"

# A StatefulSet's pods carry "<name>-<ordinal>" and a revision hash in labels of at most 63
# characters; the derived Services add up to nine. 40 leaves room for all of them.
MAX_CLUSTER_NAME = 40
MAX_INSTANCES = 9

# Images are named pgcluster.dev/<name>:<tag>; a registry's name goes before it where there is one.
IMAGES = GROUP

# Of names inside of a Kubernetes cluster, unless whoever set it up chose another.
DNS_DOMAIN = "cluster.local"

# --- labels -----------------------------------------------------------------------------------
LABEL_CLUSTER = f"{GROUP}/cluster"
LABEL_COMPONENT = f"{GROUP}/component"
LABEL_ROLE = f"{GROUP}/role"
# On a pooler's pod, from its template: the Services of the pools select it. The operator takes it
# from a pod that the primary does not hear any more.
LABEL_SERVING = f"{GROUP}/serving"
SERVING = "true"
COMPONENT_POSTGRES = "postgres"
COMPONENT_PGBOUNCER = "pgbouncer"
ROLE_PRIMARY = "primary"
ROLE_STANDBY = "standby"
MANAGED_BY = "pgcluster-operator"

# --- annotations ------------------------------------------------------------------------------
# On the Lease, written by its holder: the cluster's high-water mark.
ANNOTATION_SYSTEM_ID = f"{GROUP}/system-identifier"
ANNOTATION_TIMELINE = f"{GROUP}/timeline"
ANNOTATION_WAL_POSITION = f"{GROUP}/wal-position"
# … the highest timeline that any promotion has begun, finished or not;
ANNOTATION_RESERVED = f"{GROUP}/timeline-reserved"
# … whether that position is the exact end, after a stop in order;
ANNOTATION_FINAL = f"{GROUP}/final"
# … what its commits wait for (topology/quorum.py);
ANNOTATION_SYNCHRONOUS = f"{GROUP}/synchronous"
# … who last was the primary under it, which is not who holds it as long as that one only may be,
ANNOTATION_WRITER = f"{GROUP}/writer"
# … who held it last, which a released Lease would forget,
ANNOTATION_LAST_HOLDER = f"{GROUP}/last-holder"
# … whether it was given up for a successor that somebody has chosen,
ANNOTATION_HANDOVER = f"{GROUP}/handover"
# … that the holder is about to stop in order, so that the pools hold their clients,
ANNOTATION_PAUSING = f"{GROUP}/pausing"
# … who is to take over then,
ANNOTATION_SUCCESSOR = f"{GROUP}/successor"
# … and a word that the kubelet repeats when this very container has ended.
ANNOTATION_CONTAINER = f"{GROUP}/holder-container"
# On a postgres pod, written by its agent: one JSON document, see api/reports.py.
ANNOTATION_INSTANCE = f"{GROUP}/instance"
# On the poolers' pods: the hash of the settings that pgbouncer reads only when it starts.
ANNOTATION_RESTART_SETTINGS = f"{GROUP}/restart-settings"
# On rendered objects: the hash of what they were rendered from.
ANNOTATION_HASH = f"{GROUP}/spec-hash"
# On a PgCluster, by a user, and then on its pods: a new value restarts the instances one by one.
ANNOTATION_RESTART = f"{GROUP}/restart"
# On a PgCluster, by a user: asks for a switchover to `<instance>` or `any`, each value once.
ANNOTATION_SWITCHOVER = f"{GROUP}/switchover"
ANY = "any"
# On a pod of an instance, from its template: the hash of what of the spec decided how it looks.
ANNOTATION_INPUTS = f"{GROUP}/inputs"

# --- field managers of server-side apply ------------------------------------------------------
MANAGER_OPERATOR = "pgcluster-operator"
MANAGER_STATUS = "pgcluster-operator-status"
MANAGER_POOLS = "pgcluster-operator-pools"  # the operator's repairs of databases.ini, that key only
MANAGER_NODE = "pgcluster-node"
MANAGER_POOLER = "pgcluster-pooler"

# --- ports ------------------------------------------------------------------------------------
PORT_POSTGRES = 5432
PORT_PGBOUNCER = 5432
PORT_AGENT = 8008  # node and pooler agents: /livez /readyz /metrics, of the pooler /status too
PORT_PEER = 8009  # node agents among themselves, by mutual TLS
PORT_OPERATOR = 8080  # operator: /livez /readyz /metrics

# --- users of the operating system, as the images create them ---------------------------------
UID_POSTGRES = 999
UID_PGBOUNCER = 998
UID_OPERATOR = 65532

# --- roles and databases inside PostgreSQL ----------------------------------------------------
DB_REPMGR = "repmgr"
ROLE_REPMGR = "repmgr"  # superuser: repmgr needs it for its extension, slots and pg_rewind
ROLE_POOLER = "pgcluster_pooler"  # runs auth_query and the poolers' probe, nothing else
SCHEMA = "pgcluster"  # our functions, in database "postgres"
RESERVED_ROLES = ("postgres", ROLE_REPMGR, ROLE_POOLER, "pgbouncer", "pgbouncer_stats")
RESERVED_DATABASES = ("postgres", "template0", "template1", DB_REPMGR, "pgbouncer")
READ_ONLY_SUFFIX = "_ro"
IMPORT_PREFIX = "pgcluster_import_"  # of a database that is not complete yet
APPLICATION_POOLER = "pgcluster-pooler"  # of the connections by which poolers are heard

# --- paths in a postgres pod ------------------------------------------------------------------
VOLUME = "/var/lib/pgcluster"  # the instance's volume
PGDATA = f"{VOLUME}/pgdata"
VOLUME_LOCK = f"{VOLUME}/.lock"
IMPORT_DIR = f"{VOLUME}/import"  # what is taken over from elsewhere, on its way
WAL_VOLUME = "/var/lib/pgcluster-wal"  # mounted only with spec.storage.walSize
RUN = "/run/pgcluster"  # emptyDir: sockets and rendered configuration
AGENT_SOCKET = f"{RUN}/agent.sock"
PG_SOCKET_DIR = RUN
POSTGRESQL_CONF = f"{RUN}/postgresql.conf"
PG_HBA_CONF = f"{RUN}/pg_hba.conf"
PG_IDENT_CONF = f"{RUN}/pg_ident.conf"
REPMGR_CONF = f"{RUN}/repmgr.conf"
REPMGR_CONF_LINK = "/etc/repmgr.conf"  # where repmgr looks by itself; the image links it
PASSFILE = f"{RUN}/pgpass"
HOSTS_FILE = f"{RUN}/hosts"
LEASE_FILE = f"{RUN}/lease"  # until when postgres may write: from the guard to pgcluster_fence
TERMINATION_LOG = "/dev/termination-log"  # the kubelet reads it when the container has ended
SPACE_CONF = f"{RUN}/space.conf"  # what postgres may not do while a volume is full
# The certificates of this instance, copied from their mounts with the modes that postgres wants:
# each a private key and its certificate in one file, so that a renewal is one rename.
SERVER_PEM = f"{RUN}/server.pem"
CLIENT_PEM = f"{RUN}/client.pem"  # by which it is repmgr to the others
CA_PEM = f"{RUN}/ca.pem"  # the authorities of all instances
TRIAL_CONF = f"{RUN}/postgresql.trial.conf"  # settings that postgres is asked about
GOOD_PARAMETERS = f"{VOLUME}/.parameters.json"  # those of the last start that succeeded
ENV_ASKED_BY = "PGCLUSTER_ASKED_BY"  # of repmgr's commands for a peer: which instance asks
ENV_CLIENT_CERTIFICATE = ("PGSSLCERT", "PGSSLKEY")  # libpq's, for a person's shell in the pod
IMPORT_CA = f"{RUN}/import-ca.crt"  # what the server is proven by that an import reads
AGENT_CLIENT = "/usr/local/bin/pgcluster-event"  # repmgr's commands call it

# --- mounts shared by the pods ----------------------------------------------------------------
CONFIG_DIR = "/etc/pgcluster/config"  # ConfigMap <cluster>-config
CONFIG_KEY = "cluster.json"
SECRETS_DIR = (
    "/etc/pgcluster/secrets"  # one folder a Secret: repmgr/ pooler/ peers/ server/ client/ tls/
)
PEERS_DIR = f"{SECRETS_DIR}/peers"  # Secret <cluster>-peers
SERVER_DIR = f"{SECRETS_DIR}/server"  # Secret <cluster>-server
CLIENT_DIR = f"{SECRETS_DIR}/client"  # Secret <cluster>-replication
POOL_TLS_DIR = f"{SECRETS_DIR}/tls"  # Secret <cluster>-pool-tls
CA_BUNDLE_KEY = "ca.crt"
# Of <cluster>-pool-tls: who is to make its certificate, and who has made the one that is in it.
ISSUER_KEY = "issuer"
ISSUED_BY_KEY = "issued-by"
SERVER_CA_KEY = "server-ca.crt"  # of <cluster>-pool-tls: who signs the instances' certificates
CERTIFICATE_KEY = "tls.crt"
PRIVATE_KEY_KEY = "tls.key"

# --- paths in a pgbouncer pod -----------------------------------------------------------------
PGBOUNCER_DIR = "/run/pgbouncer"  # emptyDir shared by pgbouncer and its agent
PGBOUNCER_INI = f"{PGBOUNCER_DIR}/pgbouncer.ini"
PGBOUNCER_DATABASES = f"{PGBOUNCER_DIR}/databases.ini"
PGBOUNCER_USERLIST = f"{PGBOUNCER_DIR}/userlist.txt"
PGBOUNCER_PEM = f"{PGBOUNCER_DIR}/tls.pem"  # key and certificate that its clients see
PGBOUNCER_SERVER_CA = f"{PGBOUNCER_DIR}/server-ca.pem"
PGBOUNCER_DOOR = f"{PGBOUNCER_DIR}/leave"  # the pipe by which pgbouncer is let go
# Keys of ConfigMap <cluster>-pgbouncer. The first is for agents of a version without TLS, which
# would not have the files that the second names.
PGBOUNCER_INI_KEY = "pgbouncer.ini"
PGBOUNCER_TLS_INI_KEY = "pgbouncer-tls.ini"
DATABASES_KEY = "databases.ini"
PGBOUNCER_ADMIN = "pgbouncer"
PGBOUNCER_STATS = "pgbouncer_stats"


# --- derived objects --------------------------------------------------------------------------
def statefulset(cluster: str) -> str:
    """StatefulSet of the instances; its pods are `pod(cluster, ordinal)`."""
    return cluster


def pod(cluster: str, ordinal: int) -> str:
    """Pod of one instance, which is also its repmgr node name and Lease identity."""
    return f"{cluster}-{ordinal}"


def ordinal(pod_name: str) -> int:
    """Ordinal of an instance from its pod's name; ValueError where there is none."""
    return int(pod_name.rpartition("-")[2])


def node_id(pod_name: str) -> int:
    """repmgr's node id of an instance: stable, and ≥ 1 as repmgr wants it."""
    return ordinal(pod_name) + 1


def pod_of_node_id(cluster: str, node: int) -> str:
    """Pod of the instance that repmgr knows as `node`."""
    return pod(cluster, node - 1)


def slot(pod_name: str) -> str:
    """Replication slot that repmgr gives to an instance."""
    return f"repmgr_slot_{node_id(pod_name)}"


def primary_lease(cluster: str) -> str:
    """Lease whose holder may write."""
    return f"{cluster}-primary"


def service_pool(cluster: str) -> str:
    """The pool: the Service to use."""
    return cluster


def service_read_only(cluster: str) -> str:
    """The pool again, for clients of the `<database>_ro` entries."""
    return f"{cluster}-ro"


def service_primary(cluster: str) -> str:
    """The primary itself, past the pool."""
    return f"{cluster}-primary"


def service_nodes(cluster: str) -> str:
    """Headless Service that gives each instance its stable name."""
    return f"{cluster}-nodes"


def pod_host(pod_name: str, cluster: str, namespace: str) -> str:
    """Stable DNS name of an instance, as repmgr's conninfo has it."""
    return f"{pod_name}.{service_nodes(cluster)}.{namespace}.svc"


def config_map(cluster: str) -> str:
    """What the agents of the instances need to know of the spec: key `cluster.json`."""
    return f"{cluster}-config"


def config_map_pgbouncer(cluster: str) -> str:
    """pgbouncer's files: settings and the databases section that repmgr's events rewrite."""
    return f"{cluster}-pgbouncer"


def config_map_poolers(cluster: str) -> str:
    """Reports of the poolers, one key a pod (their names are not known to RBAC beforehand)."""
    return f"{cluster}-poolers"


def pooler_application(pod_name: str) -> str:
    """application_name of a pooler's own connections to the instances.

    What is of the pod alone, without the names of its cluster and Deployment: PostgreSQL cuts
    names off at 63 bytes.
    """
    return f"{APPLICATION_POOLER} {'-'.join(pod_name.rsplit('-', 2)[-2:])[-40:]}"


def secret_app(cluster: str) -> str:
    """Credentials and URIs for the application."""
    return f"{cluster}-app"


def secret_repmgr(cluster: str) -> str:
    """Password of role `repmgr`: key `password`."""
    return f"{cluster}-repmgr"


def secret_pooler(cluster: str) -> str:
    """Passwords of pgbouncer: keys `auth-password`, `admin-password`, `stats-password`."""
    return f"{cluster}-pooler"


def secret_ca(cluster: str) -> str:
    """The cluster's own certificate authority: for the operator alone, mounted nowhere."""
    return f"{cluster}-ca"


def secret_peers(cluster: str) -> str:
    """The certificate by which the instances' agents know one another, and what it is proven by."""
    return f"{cluster}-peers"


def secret_server(cluster: str) -> str:
    """The certificate of PostgreSQL on every instance, and the authorities to believe."""
    return f"{cluster}-server"


def secret_replication(cluster: str) -> str:
    """The client certificate by which instances are role `repmgr` to one another."""
    return f"{cluster}-replication"


def secret_pool_ca(cluster: str) -> str:
    """The authority of what the poolers show to clients, apart from that of the instances."""
    return f"{cluster}-pool-ca"


def secret_pool_tls(cluster: str) -> str:
    """The certificate that the poolers show to clients, and who signs the instances' ones."""
    return f"{cluster}-pool-tls"


def secret_pool_certificate(cluster: str) -> str:
    """Where cert-manager puts what spec.tls.issuerRef asks it for; its Certificate, too."""
    return f"{cluster}-pool-certificate"


def own_secrets(cluster: str) -> tuple[str, ...]:
    """Every Secret that the operator makes for a cluster."""
    return (
        secret_repmgr(cluster),
        secret_pooler(cluster),
        secret_app(cluster),
        secret_ca(cluster),
        secret_peers(cluster),
        secret_server(cluster),
        secret_replication(cluster),
        secret_pool_ca(cluster),
        secret_pool_tls(cluster),
    )


def service_hosts(service: str, namespace: str) -> tuple[str, ...]:
    """Every name by which a Service is reached inside of a Kubernetes cluster."""
    return (
        service,
        f"{service}.{namespace}",
        f"{service}.{namespace}.svc",
        f"{service}.{namespace}.svc.{DNS_DOMAIN}",
    )


def pool_hosts(cluster: str, namespace: str) -> tuple[str, ...]:
    """The names that clients know the pools by."""
    services = (service_pool(cluster), service_read_only(cluster))
    return tuple(host for service in services for host in service_hosts(service, namespace))


def server_hosts(cluster: str, namespace: str) -> tuple[str, ...]:
    """The names that an instance is reached by: its own, the primary's, and where nobody pools
    those of the pools, which then lead to the primary."""
    nodes = service_nodes(cluster)
    return (
        *(f"*.{host}" for host in service_hosts(nodes, namespace)),
        *service_hosts(nodes, namespace),
        *service_hosts(service_primary(cluster), namespace),
        *pool_hosts(cluster, namespace),
    )


def peer_name(cluster: str, namespace: str) -> str:
    """The name in that certificate: every instance of this cluster, and nobody else."""
    return f"peers.{cluster}.{namespace}.{GROUP}"


def service_account_postgres(cluster: str) -> str:
    """ServiceAccount, Role and RoleBinding of the instances."""
    return f"{cluster}-postgres"


def pgbouncer(cluster: str) -> str:
    """Deployment, ServiceAccount, Role, RoleBinding and PodDisruptionBudget of the poolers."""
    return f"{cluster}-pgbouncer"
