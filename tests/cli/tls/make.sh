#!/bin/sh
# Makes the certificates that the tests of HTTPS use, valid from 2020 to 2120: two authorities, two certificates of one
# node by the first, and one of a client by each. The keys are of use for nothing else. Run it here; it takes openssl.
set -eu
authority() {
    openssl req -x509 -newkey ed25519 -nodes -days 36500 -subj "/CN=keelstone test $1" -keyout "$1.key" -out "$1.pem" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
}
signed() { # name, authority, extension
    cat >ca.cnf <<END
[ca]
default_ca = here
[here]
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = default
policy = any
x509_extensions = leaf
unique_subject = no
[any]
commonName = supplied
[leaf]
basicConstraints = critical,CA:FALSE
$3
END
    : >index.txt
    openssl req -newkey ed25519 -nodes -subj "/CN=keelstone test $1" -keyout "$1.key" -out "$1.csr"
    openssl ca -batch -config ca.cnf -cert "$2.pem" -keyfile "$2.key" -in "$1.csr" -notext -out "$1.pem" \
        -startdate 20200101000000Z -enddate 21200101000000Z
    rm -f ca.cnf index.txt* "$1.csr" [0-9A-F]*.pem
}
names='subjectAltName = DNS:localhost,IP:127.0.0.1'
authority authority
authority stranger
signed node authority "$names"
signed renewed authority "$names"
signed client authority 'extendedKeyUsage = clientAuth'
signed intruder stranger 'extendedKeyUsage = clientAuth'
# Nobody signs anything more.
rm authority.key stranger.key
