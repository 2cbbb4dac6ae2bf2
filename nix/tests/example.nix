{
  services.nix-broker.enable = true;
  services.nix-broker.settings.pool = [
    {
      name = "office";
      features = [ "big-parallel" "gccarch-znver3" ];
      hosts = [ { address = "10.0.0.7"; user = "nix"; host-keys = [ "ssh-ed25519 AAAA..." ]; } ];
    }
  ];
}
