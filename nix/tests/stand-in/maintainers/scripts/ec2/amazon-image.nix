# The image of EC2, as far as ../../../../../image.nix meets it; where nixpkgs has it too.
{ pkgs, ... }:
{
  system.build.amazonImage = pkgs.runCommand "image" { } "";
  services.amazon-ssm-agent.enable = true;
  virtualisation.amazon-init.enable = true;
}
