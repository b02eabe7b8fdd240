#!/bin/sh
# Run the tests of the cluster engines, each kind of cluster in a pytest process of its own: a process has one Ray, and one kind
# of Spark. All kinds: CLUSTERS="ray ray-two dask dask-processes spark spark-local-cluster spark-standalone spark-connect
# spark-connect-cluster"; with words behind a colon, only the tests with one of these words in their name.
set -eu
: "${CLUSTERS:=ray-two dask-processes spark spark-connect spark-local-cluster:machine,gpu spark-standalone:machine,gone
spark-connect-cluster:machine}"

if ! command -v java >/dev/null && [ -z "${JAVA_HOME:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing Java 17, which Spark needs"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y openjdk-17-jre-headless >/dev/null || true
fi

for each in $CLUSTERS; do
    cluster=${each%%:*}
    only=$(expr "$each" : '[^:]*:\(.*\)' | sed 's/,/ or /g') || true
    case $cluster in
        spark*)
            if ! command -v java >/dev/null && [ -z "${JAVA_HOME:-}" ]; then
                echo "$cluster: SKIPPED, there is no Java (Debian: apt-get install openjdk-17-jre-headless)"
                continue
            fi
            ;;
    esac
    echo "$cluster: the tests on a real cluster"
    .venv/bin/python -m pytest -q tests_on_clusters "--cluster=$cluster" -k "$only"
done
