//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
)

// The configurations of the other contenders: one worker or thread where there is a choice, no
// buffering and no delay of small pieces, no access log, and enough connections to the fake that
// none is opened twice.

func nginxConfig(addr, fake string) string {
	user := "" // of the worker: a warning unless nginx runs as root
	if os.Getuid() == 0 {
		user = "user root;"
	}
	return fmt.Sprintf(`daemon off;
%s
worker_processes 1;
worker_rlimit_nofile 16384;
pid nginx.pid;
error_log stderr error;
events { worker_connections 8192; }
http {
	access_log off;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	keepalive_requests 1000000000;
	keepalive_timeout 10m;
	upstream fake {
		server %s;
		keepalive 4096;
		keepalive_requests 1000000000;
		keepalive_timeout 10m;
	}
	server {
		listen %s backlog=4096;
		location / {
			proxy_pass http://fake;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_buffering off;
			proxy_read_timeout 10m;
		}
	}
}
`, user, fake, addr)
}

func haproxyConfig(addr, fake string) string {
	return fmt.Sprintf(`global
	nbthread 1
	maxconn 4096
defaults
	mode http
	option http-keep-alive
	option http-no-delay
	http-reuse always
	timeout connect 10s
	timeout client 10m
	timeout server 10m
	timeout http-keep-alive 10m
frontend clients
	bind %s backlog 4096
	default_backend engines
backend engines
	server fake %s pool-purge-delay 10m
`, addr, fake)
}

func caddyConfig(addr, fake string) string {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		panic(err) // freeAddr made it
	}
	return fmt.Sprintf(`{
	admin off
	auto_https off
	persist_config off
	log {
		level ERROR
	}
}
http://:%s {
	bind 127.0.0.1
	reverse_proxy %s {
		flush_interval -1
		transport http {
			keepalive 10m
			keepalive_idle_conns 8192
			keepalive_idle_conns_per_host 8192
		}
	}
}
`, port, fake)
}
